# A segmentation on its series, read by highdicom. usage: FILE SERIES LABELS(uint8, z y x along the normal); prints JSON
import glob, json, pathlib, subprocess, sys
import highdicom, numpy as np, pydicom

seg_file, series, labels = sys.argv[1:]
slices = [pydicom.dcmread(f, stop_before_pixels=True) for f in glob.glob(series + "/*")]
normal = np.cross(slices[0].ImageOrientationPatient[:3], slices[0].ImageOrientationPatient[3:])
slices.sort(key=lambda d: float(np.dot(normal, d.ImagePositionPatient)))
wanted = np.fromfile(labels, np.uint8).reshape(len(slices), slices[0].Rows, slices[0].Columns)
seg = highdicom.seg.segread(seg_file)
uids = [d.SOPInstanceUID for d in slices]
got = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True, ignore_spatial_locations=True)
place = {d.SOPInstanceUID: [float(v) for v in d.ImagePositionPatient] for d in slices}
moved = 0
for f in seg.PerFrameFunctionalGroupsSequence:
    named = f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
    moved += place[named] != [float(v) for v in f.PlanePositionSequence[0].ImagePositionPatient]
verify = subprocess.run([str(pathlib.Path(sys.executable).parent / "dciodvfy"), seg_file], capture_output=True, text=True)
print(json.dumps({
    "differ": int((got != wanted).sum()), "labelled": int((wanted > 0).sum()), "moved": moved, "type": seg.segmentation_type.value,
    "verified": verify.returncode == 0, "errors": [l for l in (verify.stdout + verify.stderr).splitlines() if l.startswith("Error")],
    "study": seg.StudyInstanceUID == slices[0].StudyInstanceUID, "patient": seg.PatientID == slices[0].PatientID,
    "new_series": seg.SeriesInstanceUID != slices[0].SeriesInstanceUID,
}))
