//! `voxmill view`: volumes as pictures, on disk and in the terminal.

use crate::bench::Bench;

/// Width and height, from the header of a PNG.
fn size(b: &Bench, name: &str) -> (u32, u32) {
    let bytes = std::fs::read(b.path(name)).unwrap();
    assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

#[test]
fn volumes_are_shown_as_mosaics() {
    let b = Bench::new(2);
    b.voxmill(&["view", "iso"]).expect(2).says("nothing was run");
    b.run(&[]).expect(0);
    b.voxmill(&["view", "iso/hippocampus_001"]).expect(2).says("--output");
    let said = b.voxmill(&["view", "iso/hippocampus_001", "-o", "one.png", "--window", "-5,90"]).expect(0);
    said.says("iso/hippocampus_001").says("grey from -5 to 90").says("one.png");
    assert_eq!(size(&b, "one.png"), (960, 320));
    // All cases of a node, a prediction on its image, a case.
    b.voxmill(&["view", "iso", "--size", "64", "-o", "all.png"]).expect(0);
    assert_eq!(size(&b, "all.png"), (192, 128));
    b.voxmill(&["view", "seg/hippocampus_001", "--file", "p.yaml", "-o", "seg.png"]).expect(0).says("grey from");
    b.voxmill(&["view", "hippocampus_001", "-o", "case.png"]).expect(0).says("masks/hippocampus_001");
    assert_eq!(std::fs::read(b.path("seg.png")).unwrap(), std::fs::read(b.path("case.png")).unwrap(), "the same pair");
    let inline = b.voxmill(&["view", "iso/hippocampus_001", "--inline", "kitty"]).expect(0).stdout;
    assert!(inline.starts_with("\x1b_Ga=T,f=100,"), "{}", &inline[..40]);
    b.voxmill(&["view", "folds", "-o", "x.png"]).expect(2).says("no volume");
    b.voxmill(&["view", "iso/nobody", "-o", "x.png"]).expect(2).says("hippocampus_001");
    b.voxmill(&["view", "iso", "--window", "9,1", "-o", "x.png"]).expect(2).says("--window");
    assert!(!b.path("x.png").exists());
}
