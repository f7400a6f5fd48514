//! Files that claim to be one instance: copies of it, cut off, or a conflict.

use std::collections::BTreeMap;

use super::bytes::{Source, Wrapping};
use super::classes::{self, Class};
use super::contents::FileRef;
use super::frames;
use super::header::{Common, Header};
use super::pixels::{self, How};
use super::rows::{File, Made, Making};
use crate::error::Error;

/// Two files of one instance are compared voxel by voxel up to this size.
const MAX_COMPARED_VOXELS: u64 = 512 << 20;

/// All that says to which volume an image belongs and where in it: the header without where its pixels lie in the file and how they are packed.
fn placed(h: &Header) -> Header {
    let common = Common {
        transfer_syntax: String::new(),
        is_big_endian: false,
        wrapping: Default::default(),
        description: String::new(),
        manufacturer: String::new(),
        ..Common::clone(&h.common)
    };
    Header { common: common.into(), pixel: None, extended_offsets: Vec::new(), ..h.clone() }
}

/// What is missing of the pixels of a file, as far as its header and its length tell.
fn lack(f: &File) -> Option<String> {
    let length = if f.header.wrapping == Wrapping::None { f.entry.seen.bytes } else { u64::MAX };
    frames::lack(&f.header, length)
}

/// Puts files in the order of their instances and then of their names. Whether each is an instance of its own.
fn sort(files: &mut [File]) -> bool {
    files.sort_by(|a, b| (&a.header.sop_instance, &a.name).cmp(&(&b.header.sop_instance, &b.name)));
    let is_first_named = files.first().is_none_or(|f| !f.header.sop_instance.is_empty());
    is_first_named && files.windows(2).all(|f| f[0].header.sop_instance != f[1].header.sop_instance)
}

/// Sorted files that claim to be one instance.
fn by_instance(files: Vec<File>) -> Vec<(String, Vec<File>)> {
    let mut out: Vec<(String, Vec<File>)> = Vec::new();
    for f in files {
        match out.last_mut() {
            Some((instance, twins)) if *instance == f.header.sop_instance => twins.push(f),
            _ => out.push((f.header.sop_instance.clone(), vec![f])),
        }
    }
    out
}

impl Making<'_> {
    /// Files whose pixels are cut off fail. Where a whole file holds the same instance that one is taken; an image that is there in part alone stays as
    /// [`File::disputed`].
    pub(super) fn without_cut_off<'f>(&self, mut files: Vec<File<'f>>, made: &mut Made) -> Vec<File<'f>> {
        if sort(&mut files) && files.iter().all(|f| lack(f).is_none()) {
            return files;
        }
        let mut kept: Vec<File> = Vec::with_capacity(files.len());
        for (instance, twins) in by_instance(files) {
            let (mut whole, mut cut): (Vec<_>, Vec<_>) = twins.into_iter().map(|f| (lack(&f), f)).partition(|(lack, _)| lack.is_none());
            if !instance.is_empty() && whole.len() > 1 {
                let told: Vec<_> = whole.into_iter().map(|(_, f)| (self.fault(&f), f)).collect();
                let (readable, broken): (Vec<_>, Vec<_>) = told.into_iter().partition(|(why, _)| why.is_none());
                // Where none can be read that is no matter of one file, and told when they are read.
                whole = if readable.is_empty() {
                    broken
                } else {
                    cut.extend(broken);
                    readable
                };
            }
            let holder = whole.first().filter(|_| !instance.is_empty()).map(|(_, f)| f.name.clone());
            for (n, (why, mut f)) in cut.into_iter().enumerate() {
                let why = why.unwrap_or_default();
                match &holder {
                    Some(other) => made.conflicts.push((f.name, format!("{why}; {other} holds the same instance whole"))),
                    None => {
                        made.conflicts.push((f.name.clone(), why));
                        // One of them says which volume lacks a slice; of files that say no instance each.
                        if classes::of(&f.header) == Class::Image && (n == 0 || instance.is_empty()) {
                            f.disputed = vec![f.name.clone()];
                            kept.push(f);
                        }
                    }
                }
            }
            kept.extend(whole.into_iter().map(|(_, f)| f));
        }
        kept
    }

    /// Why the fragments of a compressed image cannot be told apart, or an image in a stream not be unfolded: what a cut-off file of these kinds comes to.
    fn fault(&self, f: &File) -> Option<String> {
        let is_plain = f.header.pixel.is_none_or(|p| p.length.is_some()) && f.header.wrapping == Wrapping::None;
        if is_plain || classes::of(&f.header) != Class::Image {
            return None;
        }
        match frames::open(&self.reference(f), &f.header, false, &|_| Ok(())) {
            Err(Error::Dicom { why, .. }) => Some(why),
            Err(e) => Some(e.to_string()),
            Ok(_) => None,
        }
    }

    fn reference(&self, f: &File) -> FileRef {
        let (path, member) = (self.path_of(f.entry), f.entry.seen.member.as_deref().map(String::from));
        FileRef { path, member, name: f.name.clone(), content: f.content.clone(), seen: String::new() }
    }

    /// One file an instance. Copies are left out; two different files that claim to be one instance are both left out, because nothing says which is true.
    /// Where they agree in all but the pixels, one of them stays as [`File::disputed`] to say which volume lacks a slice; else they are `unclear`, and may be a
    /// part of any volume of the series. Only of files that claim to be one instance (or say none) the bytes are looked at. The order of what is left depends on no name.
    pub(super) fn without_copies<'f>(&self, mut files: Vec<File<'f>>, made: &mut Made) -> Vec<File<'f>> {
        if sort(&mut files) {
            return files;
        }
        let mut kept: Vec<File> = Vec::with_capacity(files.len());
        for (instance, mut twins) in by_instance(files) {
            if twins.len() > 1 {
                twins.iter_mut().for_each(|f| f.content = self.hash(f));
                twins.sort_by(|a, b| (&a.content, &a.name).cmp(&(&b.content, &b.name)));
            }
            if instance.is_empty() {
                kept.extend(twins);
                continue;
            }
            let n_kept = kept.len();
            let mut conflicting: BTreeMap<String, Header> = BTreeMap::new();
            for f in twins {
                let Some(twin) = kept[n_kept..].last() else {
                    kept.push(f);
                    continue;
                };
                if twin.content == f.content {
                    made.copies.push((f.name.clone(), format!("the same bytes as {}", twin.name)));
                } else if self.is_same_image(twin, &f) {
                    made.copies.push((f.name.clone(), format!("the same instance and pixels as {}", twin.name)));
                } else {
                    let why = |other: &File| format!("it and {} say that they are one instance, and their contents differ", other.name);
                    if conflicting.insert(twin.name.clone(), (*twin.header).clone()).is_none() {
                        made.conflicts.push((twin.name.clone(), why(&f)));
                    }
                    made.conflicts.push((f.name.clone(), why(twin)));
                    conflicting.insert(f.name, *f.header);
                }
            }
            if conflicting.is_empty() {
                continue;
            }
            let mut first = kept.pop().expect("a conflict is with a file that was kept");
            let is_image = |h: &Header| classes::of(h) == Class::Image;
            if !conflicting.values().any(is_image) {
                // Labels: a file is a volume of its own.
            } else if conflicting.values().all(|h| is_image(h) && placed(h) == placed(&first.header)) {
                first.disputed = conflicting.into_keys().collect();
                kept.push(first);
            } else {
                made.unclear.extend(conflicting.into_keys());
            }
        }
        kept
    }

    /// The hash of a file's bytes; of one that cannot be read something that no other has.
    fn hash(&self, f: &File) -> String {
        let raw = Source::raw_at(&self.path_of(f.entry), f.entry.seen.member.as_deref());
        raw.and_then(|r| r.hash()).map_or_else(|_| f.name.clone(), |h| blake3::Hash::from_bytes(h).to_hex().to_string())
    }

    /// Equal voxels in equal places: the headers differ in what does not matter here (a corrected name, another lossless transfer syntax). Only images of a
    /// size that is soon compared are looked at; whatever else has other bytes is another thing.
    fn is_same_image(&self, a: &File, b: &File) -> bool {
        let (x, y) = (&a.header, &b.header);
        let fits = |h: &Header| {
            let voxels = (h.rows as u64).checked_mul(h.columns as u64).and_then(|n| n.checked_mul(h.n_frames as u64));
            h.frames.len() == h.n_frames as usize && voxels.is_some_and(|n| n > 0 && n <= MAX_COMPARED_VOXELS)
        };
        if ![x, y].iter().all(|h| classes::of(h) == Class::Image && fits(h)) {
            return false;
        }
        let geometry = |h: &Header| (h.rows, h.columns, h.n_frames, h.frames.clone());
        let voxels = |f: &File| {
            let file = self.reference(f);
            let frames: Vec<_> = (0..f.header.frames.len()).map(|frame| (0, frame)).collect();
            let how = How { keeps_colour: true, suv: None, is_repeat: false, step: &|_| Ok(()) };
            pixels::decode(&[file], std::slice::from_ref(&*f.header), &frames, x.rows as usize, x.columns as usize, &how)
        };
        geometry(x) == geometry(y) && matches!((voxels(a), voxels(b)), (Ok(a), Ok(b)) if a == b)
    }
}
