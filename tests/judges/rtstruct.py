# An RTSTRUCT on a series, read by the plain rule: even-odd for each contour, contours cut one another, pixels on a path belong to the ROI.
# usage: FILE SERIES LABELS(uint8, z y x along the normal); prints JSON
import glob, json, os, pathlib, subprocess, sys
import numpy as np, pydicom

file, series, labels = sys.argv[1:]
paths = glob.glob(series + "/*") if os.path.isdir(series) else [series]
slices = []
for d in (pydicom.dcmread(f, stop_before_pixels=True) for f in paths):
    if "PerFrameFunctionalGroupsSequence" in d:
        shared = d.SharedFunctionalGroupsSequence[0]
        for i, f in enumerate(d.PerFrameFunctionalGroupsSequence):
            g = lambda name: (f if name in f else shared)[name].value[0]
            slices.append((d, i + 1, g("PlanePositionSequence").ImagePositionPatient, g("PlaneOrientationSequence").ImageOrientationPatient, g("PixelMeasuresSequence").PixelSpacing))
    else:
        slices.append((d, None, d.ImagePositionPatient, d.ImageOrientationPatient, d.PixelSpacing))
row, column = np.array(slices[0][3][:3], float), np.array(slices[0][3][3:], float)
normal = np.cross(row, column)
slices.sort(key=lambda s: float(np.dot(normal, s[2])))
along = np.array([np.dot(normal, s[2]) for s in slices], float)
first = slices[0][0]
wanted = np.fromfile(labels, np.uint8).reshape(len(slices), first.Rows, first.Columns)

rt = pydicom.dcmread(file)
names = {int(r.ROINumber): r.ROIName for r in rt.StructureSetROISequence}
rr, cc = np.mgrid[: first.Rows, : first.Columns].astype(float)
got, kinds, named, n_contours, off, missed = np.zeros_like(wanted), set(), 0, 0, 0.0, 0
for roi in rt.ROIContourSequence:
    mask = {}
    for c in roi.get("ContourSequence", []):
        n_contours += 1
        kinds.add(c.ContourGeometricType)
        p = np.array(c.ContourData, float).reshape(-1, 3)
        assert len(p) == int(c.NumberOfContourPoints)
        k = int(np.argmin(abs(along - p[0] @ normal)))
        off = max(off, float(abs(p @ normal - along[k]).max()))
        ref = c.ContourImageSequence[0]
        named += ref.ReferencedSOPInstanceUID == slices[k][0].SOPInstanceUID and ref.get("ReferencedFrameNumber") == slices[k][1]
        v = p - np.array(slices[k][2], float)
        rc = np.stack([v @ column / float(slices[k][4][0]), v @ row / float(slices[k][4][1])], 1)
        inside, path = mask.setdefault(k, [np.zeros(rr.shape, bool), np.zeros(rr.shape, bool)])
        for a, b in zip(rc, np.roll(rc, -1, 0)):
            d = b - a
            if (a[0] != b[0]):
                inside ^= ((a[0] > rr) != (b[0] > rr)) & (cc < a[1] + (rr - a[0]) / d[0] * d[1])
            t = np.clip(((rr - a[0]) * d[0] + (cc - a[1]) * d[1]) / max(d @ d, 1e-12), 0, 1)
            path |= np.hypot(rr - a[0] - t * d[0], cc - a[1] - t * d[1]) < 1e-3
    for k, (inside, path) in mask.items():
        got[k][inside | path] = int(roi.ReferencedROINumber)
reference = rt.ReferencedFrameOfReferenceSequence[0]
images = reference.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
verify = subprocess.run([str(pathlib.Path(sys.executable).parent / "dciodvfy"), file], capture_output=True, text=True)
print(json.dumps({
    "differ": int((got != wanted).sum()), "labelled": int((wanted > 0).sum()), "contours": n_contours, "named": int(named), "off_mm": off,
    "kinds": sorted(kinds), "rois": [names[k] for k in sorted(names)], "syntax": rt.file_meta.TransferSyntaxUID,
    "verified": verify.returncode == 0, "errors": [l for l in (verify.stdout + verify.stderr).splitlines() if l.startswith("Error")],
    "study": rt.StudyInstanceUID == first.StudyInstanceUID, "patient": rt.PatientID == first.PatientID,
    "new_series": rt.SeriesInstanceUID != first.SeriesInstanceUID, "same_series": images.SeriesInstanceUID == first.SeriesInstanceUID,
    "frame": reference.FrameOfReferenceUID == first.FrameOfReferenceUID, "images": len(images.ContourImageSequence) == len(slices),
}))
