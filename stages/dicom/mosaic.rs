//! Siemens mosaics: the slices of a volume as tiles of one picture, row by row. How many there are, where they lie and in which direction they follow one
//! another stands in private elements; a mosaic that lacks one of them is refused by name. Enhanced files of Siemens XA are no mosaics.

use dicom::core::Tag;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Lps;

use super::csa;
use super::geometry::plane;
use super::header::FrameHeader;
use super::level::Level;

/// How a picture is cut into slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mosaic {
    pub slices: u32,
    /// Tiles in a row and in a column of the picture.
    pub side: u32,
    /// Size of a tile, pixels.
    pub rows: u32,
    pub columns: u32,
}

/// Blocks that a private creator may have reserved, (gggg,0010) to (gggg,0014).
pub const BLOCKS: std::ops::RangeInclusive<u16> = 0x10..=0x14;

/// The value of a private element (PS3.5 7.8.1), empty where no block of its creator has it.
pub fn private<'a>(level: &Level<'a>, group: u16, creator: &str, element: u8) -> &'a [u8] {
    let is_of = |block: &u16| level.as_text(Tag(group, *block)).eq_ignore_ascii_case(creator);
    BLOCKS.filter(is_of).map(|block| level.bytes(Tag(group, block << 8 | element as u16))).find(|b| !b.is_empty()).unwrap_or(&[])
}

/// Cuts the picture that `base` places; the frames are its slices in order.
/// - `size`: rows and columns of the picture
pub fn cut(top: &Level, base: &FrameHeader, size: [u32; 2]) -> Result<(Mosaic, Vec<FrameHeader>), String> {
    let image = private(top, 0x0029, "SIEMENS CSA HEADER", 0x10);
    let told = |name: &str| csa::numbers(image, name);
    let n = match private(top, 0x0019, "SIEMENS MR HEADER", 0x0a) {
        [a, b] if top.is_big => Some(u16::from_be_bytes([*a, *b]) as f64),
        [a, b] => Some(u16::from_le_bytes([*a, *b]) as f64),
        _ => told("NumberOfImagesInMosaic").map(|v| v[0]),
    };
    let lacks = |what: &str, tags: &str| format!("a Siemens mosaic (slices as tiles of one picture) without {what}: {tags} is missing");
    let n = n.ok_or_else(|| lacks("the number of its slices", "NumberOfImagesInMosaic (0019,100A, or the CSA header 0029,1010)"))?;
    // One slice alone follows no other.
    let is_single = n == 1.0;
    let normal = told("SliceNormalVector").filter(|v| v.len() == 3);
    let normal = match (normal, base.orientation) {
        (Some(v), _) => Lps([v[0], v[1], v[2]]),
        (None, Some(orientation)) if is_single => plane(orientation)?.normal,
        _ => {
            let why = format!("nothing else says which way its {n} slices follow one another: ask for the files as the scanner wrote them");
            return Err(format!("{}; {why}", lacks("the order of its slices", "SliceNormalVector of the CSA header (0029,1010)")));
        }
    };
    let step = base.between_mm.filter(|s| *s > 0.0).or_else(|| told("SpacingBetweenSlices").map(|v| v[0]).filter(|s| *s > 0.0));
    let step = step
        .or(is_single.then_some(1.0))
        .ok_or_else(|| lacks("the distance of its slices", "SpacingBetweenSlices (0018,0088, or the CSA header 0029,1010)"))?;
    let (Some(position), Some(orientation), Some(spacing)) = (base.position, base.orientation, base.spacing_mm) else {
        return Err(lacks("its place", "ImagePositionPatient, ImageOrientationPatient or PixelSpacing"));
    };
    let plane = plane(orientation)?;
    // Along the normal of the rows and columns, or against it.
    let along = normal.dot(plane.normal);
    if !((along.abs() - 1.0).abs() <= 1e-2) {
        return Err(format!("a Siemens mosaic whose SliceNormalVector {:?} is not the normal of its ImageOrientationPatient", normal.0));
    }
    if !((1.0..=65_536.0).contains(&n) && n.fract() == 0.0) {
        return Err(format!("a Siemens mosaic of {n} slices"));
    }
    let side = (n.sqrt() - 1e-9).ceil() as u32;
    let [rows, columns] = size;
    if rows == 0 || columns == 0 || rows % side != 0 || columns % side != 0 {
        return Err(format!("a Siemens mosaic of {n} slices whose {rows}×{columns} pixels do not divide into {side}×{side} tiles"));
    }
    let mosaic = Mosaic { slices: n as u32, side, rows: rows / side, columns: columns / side };
    // ImagePositionPatient is that of a picture as large as the mosaic around the centre of the slice.
    let [dy, dx] = spacing;
    let shift = |all: u32, tile: u32, mm: f64| (all - tile) as f64 / 2.0 * mm;
    let first = Lps(position) + plane.x.scale(shift(columns, mosaic.columns, dx)) + plane.y.scale(shift(rows, mosaic.rows, dy));
    let step = plane.normal.scale(step * along.signum());
    let slice = |k: u32| FrameHeader { position: Some((first + step.scale(k as f64)).0), in_stack: None, ..base.clone() };
    Ok((mosaic, (0..mosaic.slices).map(slice).collect()))
}

impl Mosaic {
    /// One slice of the picture.
    /// - `picture`: `[y, x]` of the whole mosaic; the result is `[y, x]` of the tile
    pub fn tile<T: Copy>(&self, picture: &[T], slice: usize) -> Vec<T> {
        let (rows, columns, side) = (self.rows as usize, self.columns as usize, self.side as usize);
        let (top, left) = (slice / side * rows, slice % side * columns);
        let row = |y: usize| ((top + y) * side * columns) + left;
        (0..rows).flat_map(|y| picture.get(row(y)..row(y) + columns).unwrap_or_default().iter().copied()).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::scan::{self, Wanted};
    use super::*;

    fn base() -> FrameHeader {
        FrameHeader {
            position: Some([0.0; 3]),
            orientation: Some([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
            spacing_mm: Some([2.0, 1.0]),
            between_mm: Some(3.0),
            ..FrameHeader::default()
        }
    }

    fn cut_with(csa: &[u8], n: &[u8], base: &FrameHeader) -> Result<(Mosaic, Vec<FrameHeader>), String> {
        let values: [(Tag, &[u8]); 4] = [
            (Tag(0x0019, 0x0011), b"SIEMENS MR HEADER "),
            (Tag(0x0019, 0x110a), n),
            (Tag(0x0029, 0x0010), b"SIEMENS CSA HEADER"),
            (Tag(0x0029, 0x1010), csa),
        ];
        // A file begins with a group that readers know.
        let mut bytes = b"\x08\x00\x60\x00CS\x02\x00MR".to_vec();
        for (tag, value) in values {
            bytes.extend([tag.0.to_le_bytes(), tag.1.to_le_bytes()].concat());
            bytes.extend(b"UN\0\0");
            bytes.extend((value.len() as u32).to_le_bytes());
            bytes.extend(value);
        }
        let wanted = Wanted::new(values.map(|(tag, _)| tag).to_vec(), Vec::new());
        let scanned = scan::scan(&bytes, bytes.len() as u64, &wanted).unwrap_or_else(|_| panic!("well-formed elements"));
        cut(&Level::new(&bytes, &scanned.elements, false), base, [40, 20])
    }

    #[test]
    fn slices_stand_where_the_tiles_say_in_the_direction_of_the_normal() {
        for (z, step) in [("1", 3.0), ("-1", -3.0)] {
            let csa = super::super::csa::tests::header(&[("SliceNormalVector", &["0", "0", z])]);
            let (mosaic, frames) = cut_with(&csa, &[3, 0], &base()).unwrap();
            assert_eq!(mosaic, Mosaic { slices: 3, side: 2, rows: 20, columns: 10 });
            // Half of what the mosaic is wider than a tile: 5 columns of 1 mm, 10 rows of 2 mm.
            assert_eq!(frames.iter().map(|f| f.position.unwrap()).collect::<Vec<_>>(), [0.0, 1.0, 2.0].map(|k| [5.0, 20.0, k * step]));
        }
    }

    #[test]
    fn tiles_are_cut_row_by_row() {
        let m = Mosaic { slices: 3, side: 2, rows: 1, columns: 2 };
        let picture = [0, 1, 2, 3, 4, 5, 6, 7];
        assert_eq!([0, 1, 2].map(|k| m.tile(&picture, k)), [[0, 1], [2, 3], [4, 5]]);
    }

    #[test]
    fn one_slice_alone_needs_no_order() {
        let (mosaic, frames) = cut_with(b"", &[1, 0], &FrameHeader { between_mm: None, ..base() }).unwrap();
        assert_eq!((mosaic.side, frames.len(), frames[0].position), (1, 1, Some([0.0; 3])));
    }

    #[test]
    fn what_is_missing_is_named() {
        let csa = super::super::csa::tests::header(&[("SliceNormalVector", &["0", "0", "1"])]);
        let why = cut_with(b"", &[3, 0], &base()).unwrap_err();
        assert!(why.contains("SliceNormalVector") && why.contains("which way its 3 slices"), "{why}");
        assert!(cut_with(&csa, b"", &base()).unwrap_err().contains("NumberOfImagesInMosaic"));
        assert!(cut_with(&csa, &[3, 0], &FrameHeader { between_mm: None, ..base() }).unwrap_err().contains("SpacingBetweenSlices"));
        assert!(cut_with(&csa, &[3, 0], &FrameHeader { position: None, ..base() }).unwrap_err().contains("ImagePositionPatient"));
        assert!(cut_with(&csa, &[50, 0], &base()).unwrap_err().contains("do not divide into 8×8 tiles"));
    }
}
