# The Siemens mosaics that come with nibabel, as nibabel reads them. usage: FOLDER (gets NAME.dcm and NAME.nii each); prints the names as JSON
import gzip, json, pathlib, sys, warnings
warnings.simplefilter("ignore")
import nibabel, numpy as np, pydicom
from nibabel.nicom import dicomwrappers

out, names = pathlib.Path(sys.argv[1]), ["siemens_dwi_0", "siemens_dwi_1000"]
data = pathlib.Path(dicomwrappers.__file__).parent / "tests/data"
for name in names:
    file = out / f"{name}.dcm"
    file.write_bytes(gzip.open(data / f"{name}.dcm.gz").read())
    seen = dicomwrappers.wrapper_from_data(pydicom.dcmread(file))
    nibabel.save(nibabel.Nifti1Image(np.asarray(seen.get_data(), np.int16), np.diag([-1, -1, 1, 1]) @ seen.affine), out / f"{name}.nii")
print(json.dumps(names))
