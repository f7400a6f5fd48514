//! What is wrong before a line is read: folders, missing, empty, binary and endless files.

use std::path::Path;

use crate::stages::STAGES;

fn told(file: &Path) -> String {
    let problems = voxmill::load(file, &[], STAGES).err().unwrap();
    let folder = format!("{}/", file.parent().unwrap().display());
    voxmill::problem::render_as(&problems, false).replace(&folder, "")
}

#[test]
fn a_file_that_cannot_be_read_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("folder")).unwrap();
    std::fs::write(path("empty.yaml"), "").unwrap();
    std::fs::write(path("comment.yaml"), "# later\n").unwrap();
    std::fs::write(path("binary.yaml"), b"name: x\nstages: \xff\xfe\x00\n").unwrap();
    std::fs::write(path("huge.yaml"), "# a line\n".repeat(200_000)).unwrap();
    std::fs::write(path("list.yaml"), "- a\n- b\n").unwrap();
    std::fs::write(path("text.yaml"), "Dear colleague,\n").unwrap();
    let all = ["folder", "nothing.yaml", "empty.yaml", "comment.yaml", "binary.yaml", "huge.yaml", "list.yaml", "text.yaml"];
    let told: Vec<String> = all.iter().map(|n| format!("== {n}\n{}", told(&path(n)))).collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn an_endless_file_is_refused_without_reading_it() {
    assert!(told(Path::new("/dev/zero")).contains("larger than 1 MiB"));
}
