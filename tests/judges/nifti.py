# NIfTI files as nibabel reads them. usage: FILE RAW (uint8 or int16, c z y x); prints JSON
import gzip, json, sys
import nibabel, numpy as np

file, raw = sys.argv[1:]
image = nibabel.load(file)
header = image.header
data = np.asanyarray(image.dataobj)
if data.dtype.fields:
    data = np.stack([data[c] for c in ("R", "G", "B")], -1)
flat = np.ascontiguousarray(data.T).tobytes()
plain = gzip.open(file).read() if file.endswith(".gz") else open(file, "rb").read()
print(json.dumps({
    "same": flat == open(raw, "rb").read(), "shape": list(image.shape), "dtype": str(image.get_data_dtype()), "zooms": [float(z) for z in header.get_zooms()],
    "units": list(header.get_xyzt_units()), "sform": int(header["sform_code"]), "qform": int(header["qform_code"]), "affine": image.affine.tolist(),
    "off": float(abs(image.get_qform() - image.affine).max()) if header["qform_code"] else None, "bytes": len(plain),
}))
