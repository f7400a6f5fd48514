# Every frame of segmentations as highdicom reads them. usage: OUT FILE...; writes OUT/N.raw (uint8, frame row column), prints [{name, slide, shape, segments}]
import json, pathlib, sys
import highdicom, numpy as np

out, *files = sys.argv[1:]
told = []
for i, file in enumerate(files):
    s = highdicom.seg.segread(file)
    frames = np.stack([s.get_stored_frame(f + 1) for f in range(s.number_of_frames)])
    frames.astype(np.uint8).tofile(f"{out}/{i}.raw")
    def number(g):
        for level in (g, s.SharedFunctionalGroupsSequence[0]):
            if "SegmentIdentificationSequence" in level:
                return int(level.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    slide = "TotalPixelMatrixRows" in s
    groups = s.get("PerFrameFunctionalGroupsSequence", [])
    told.append({"name": pathlib.Path(file).name, "slide": slide, "shape": list(frames.shape), "segments": [number(g) for g in groups]})
print(json.dumps(told))
