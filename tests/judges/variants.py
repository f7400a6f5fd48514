# One segmentation in many forms that all mean the same voxels. usage: BINARY LABELMAP OUT; writes OUT/NAME.dcm, prints the names as JSON
import copy, json, sys, zlib
import numpy as np, pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless, UID

binary, labelmap, out = sys.argv[1:]
names = []


def save(d, name, **how):
    list(d.iterall())  # every element decoded, so that another byte order can be written
    pydicom.dcmwrite(f"{out}/{name}.dcm", d, **how)
    names.append(name)


def load(file):
    d = pydicom.dcmread(file)
    return d, d.pixel_array.reshape(-1, d.Rows, d.Columns).astype(np.uint8)


def put(d, frames, bits=None):
    d.NumberOfFrames, d.Rows, d.Columns = frames.shape
    if d.BitsAllocated == 1:
        raw = np.packbits(frames.ravel(), bitorder="little").tobytes()
    else:
        raw = frames.astype("<u2" if d.BitsAllocated == 16 else "u1").tobytes()
    d.PixelData = raw + b"\0" * (len(raw) % 2)
    d["PixelData"].VR = "OW" if d.BitsAllocated == 16 else "OB"


def groups(d):
    return d.PerFrameFunctionalGroupsSequence


def shared(d):
    return d.SharedFunctionalGroupsSequence[0]


# Encodings.
d, m = load(labelmap)
d.compress(RLELossless)
save(d, "labelmap_rle")
d, m = load(labelmap)
d.compress(JPEGLSLossless)
save(d, "labelmap_jpegls")
for file, name in ((binary, "binary_deflated_frames"), (labelmap, "labelmap_deflated_frames")):
    d, m = load(file)
    packed = [np.packbits(f.ravel(), bitorder="little").tobytes() if d.BitsAllocated == 1 else f.tobytes() for f in m]

    def deflate(b):
        z = zlib.compressobj(6, zlib.DEFLATED, -15)
        return z.compress(b) + z.flush()

    d.PixelData = encapsulate([deflate(b) for b in packed], has_bot=False)
    d["PixelData"].is_undefined_length = True
    d.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.8.1")
    save(d, name, force_encoding=True, implicit_vr=False, little_endian=True)
for syntax, name in ((ImplicitVRLittleEndian, "implicit"), (DeflatedExplicitVRLittleEndian, "deflated")):
    d, m = load(binary)
    d.file_meta.TransferSyntaxUID = syntax
    d["PixelData"].VR = "OW" if syntax == ImplicitVRLittleEndian else "OB"
    save(d, f"binary_{name}", implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
d, m = load(labelmap)
d.BitsAllocated, d.BitsStored, d.HighBit = 16, 16, 15
put(d, m)
save(d, "labelmap_16_bits")
d.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
d.PixelData = m.astype(">u2").tobytes()
save(d, "labelmap_big_endian", implicit_vr=False, little_endian=False)
d, m = load(binary)
d.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
d["PixelData"].VR = "OB"
save(d, "binary_big_endian", implicit_vr=False, little_endian=False)

# Meanings.
d, m = load(labelmap)
d.PixelPaddingValue = 9
put(d, np.where(m == 0, 9, m))
save(d, "labelmap_background_9")
d, m = load(labelmap)
d.PhotometricInterpretation = "PALETTE COLOR"
for c in ("Red", "Green", "Blue"):
    d.add_new(f"{c}PaletteColorLookupTableDescriptor", "US", [256, 0, 8])
    setattr(d, f"{c}PaletteColorLookupTableData", bytes(reversed(range(256))))
save(d, "labelmap_palette")
for kind in ("PROBABILITY", "OCCUPANCY"):
    d, m = load(binary)
    d.SegmentationType, d.SegmentationFractionalType, d.MaximumFractionalValue = "FRACTIONAL", kind, 200
    d.BitsAllocated, d.BitsStored, d.HighBit = 8, 8, 7
    put(d, np.where(m > 0, 100 + 100 * (np.indices(m.shape).sum(0) % 2), 99))
    save(d, f"fractional_{kind.lower()}")

# Frames.
d, m = load(binary)
d.PerFrameFunctionalGroupsSequence = Sequence(list(groups(d))[::-1])
put(d, m[::-1])
save(d, "binary_descending")
order = np.random.default_rng(3).permutation(len(m))
d, m = load(binary)
d.PerFrameFunctionalGroupsSequence = Sequence([groups(d)[i] for i in order])
put(d, m[order])
save(d, "binary_shuffled")
d, m = load(binary)
unused = copy.deepcopy(d.SegmentSequence[0])
unused.SegmentNumber, unused.SegmentLabel = 77, "Nothing"
d.SegmentSequence.append(unused)
save(d, "binary_segment_without_frames")
d, m = load(binary)
empty = copy.deepcopy(groups(d)[0])
d.PerFrameFunctionalGroupsSequence.append(empty)
put(d, np.concatenate([m, np.zeros_like(m[:1])]))
save(d, "binary_empty_frame")
d, m = load(binary)
for tag in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
    value = shared(d)[tag].value
    for g in groups(d):
        setattr(g, tag, copy.deepcopy(value))
    del shared(d)[tag]
save(d, "binary_geometry_in_frames")

# References: geometry wins.
d, m = load(binary)
for g in groups(d):
    if "DerivationImageSequence" in g:
        del g.DerivationImageSequence
if "ReferencedSeriesSequence" in d:
    del d.ReferencedSeriesSequence
save(d, "binary_without_references")
d, m = load(binary)
for g in groups(d):
    for s in g.get("DerivationImageSequence", []):
        for r in s.SourceImageSequence:
            r.ReferencedSOPInstanceUID = "1.2.3.4.5"
save(d, "binary_references_to_nothing")

# Other grids of the same voxels.
def turn(name, file, reshape, change):
    d, m = load(file)
    frames = reshape(m)
    o = [float(v) for v in shared(d).PlaneOrientationSequence[0].ImageOrientationPatient]
    row, column = np.array(o[:3]), np.array(o[3:])
    dy, dx = (float(v) for v in shared(d).PixelMeasuresSequence[0].PixelSpacing)
    shift, row, column, spacing = change(row, column, dy, dx, m.shape[1], m.shape[2])
    shared(d).PlaneOrientationSequence[0].ImageOrientationPatient = [f"{v:.10g}" for v in [*row, *column]]
    shared(d).PixelMeasuresSequence[0].PixelSpacing = [f"{v:.10g}" for v in spacing]
    for g in groups(d):
        p = np.array([float(v) for v in g.PlanePositionSequence[0].ImagePositionPatient]) + shift
        g.PlanePositionSequence[0].ImagePositionPatient = [f"{v:.10g}" for v in p]
    put(d, frames)
    save(d, name)


turn("flipped", binary, lambda m: m[:, :, ::-1], lambda r, c, dy, dx, ny, nx: (r * dx * (nx - 1), -r, c, (dy, dx)))
turn("turned_over", binary, lambda m: m[:, ::-1, ::-1], lambda r, c, dy, dx, ny, nx: (r * dx * (nx - 1) + c * dy * (ny - 1), -r, -c, (dy, dx)))
turn("transposed", binary, lambda m: m.transpose(0, 2, 1), lambda r, c, dy, dx, ny, nx: (0 * r, c, r, (dx, dy)))
turn("finer", labelmap, lambda m: m.repeat(2, 1).repeat(2, 2), lambda r, c, dy, dx, ny, nx: (-r * dx / 4 - c * dy / 4, r, c, (dy / 2, dx / 2)))
turn("larger", binary, lambda m: np.pad(m, ((0, 0), (5, 1), (3, 4))), lambda r, c, dy, dx, ny, nx: (-5 * c * dy - 3 * r * dx, r, c, (dy, dx)))
print(json.dumps(names))
