//! The rules of the house, kept by reading the sources: floors, doors and the size of a file.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

/// Lines of code that a file may have, its tests and comments apart. About 400 is what we aim at.
const LONGEST: usize = 600;

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut todo = vec![root.join(folder)];
    let mut out = Vec::new();
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push((path.strip_prefix(root).unwrap().to_path_buf(), std::fs::read_to_string(&path).unwrap()));
        }
    }
    assert!(!out.is_empty(), "{folder} holds sources");
    out
}

/// Code lines of a file, without comments and without the tests at its end.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let lines: Vec<&str> = text.lines().collect();
    let end = (0..lines.len()).find(|i| begins_tests(&lines[*i..])).unwrap_or(lines.len());
    lines.into_iter().take(end).filter(|l| !l.trim_start().starts_with("//"))
}

/// `#[cfg(test)]`, perhaps more attributes, and a module with a body; `mod tests;` for a file beside leaves the rest of this one code.
fn begins_tests(lines: &[&str]) -> bool {
    lines[0].starts_with("#[cfg(test)]")
        && lines.iter().find(|l| !l.starts_with("#[")).is_some_and(|l| l.ends_with('{') && l.split_whitespace().any(|word| word == "mod"))
}

fn mentions(text: &str, name: &str) -> bool {
    code(text).any(|l| {
        l.match_indices(name).any(|(at, _)| {
            let before = l[..at].chars().next_back();
            !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
        })
    })
}

#[test]
fn only_an_inline_test_module_ends_the_code_of_a_file() {
    let lines = |text| code(text).map(str::to_string).collect::<Vec<_>>();
    assert_eq!(lines("use a;\n#[cfg(test)]\nmod tests;\n// why\nfn f() {}"), ["use a;", "#[cfg(test)]", "mod tests;", "fn f() {}"]);
    assert_eq!(lines("use a;\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n    use burn::b;\n}"), ["use a;"]);
}

#[test]
fn no_file_is_too_long_to_read() {
    for (path, text) in ["schemas", "stages", "pipeline"].iter().flat_map(|f| sources(f)) {
        let n = code(&text).count();
        assert!(n <= LONGEST, "{} has {n} lines of code, more than {LONGEST}: split it by concern", path.display());
    }
}

#[test]
fn heavy_crates_enter_by_their_doors() {
    let doors: &[(&str, &[&str])] = &[
        ("serde_saphyr::", &["schemas/spec"]),
        ("dicom::", &["stages/dicom"]),
        ("dicom_pixeldata::", &["stages/dicom"]),
        ("zarrs::", &["stages/store", "stages/volume"]),
        ("burn::", &["stages/model"]),
        ("parquet::", &["stages/table"]),
        ("datafusion::", &["stages/table"]),
        ("tokio::", &["stages/table"]),
        ("clap::", &["pipeline/cli"]),
        ("clap_complete::", &["pipeline/cli"]),
        ("miette::", &["pipeline"]),
    ];
    let mut wrong = Vec::new();
    for (path, text) in ["schemas", "stages", "pipeline"].iter().flat_map(|f| sources(f)) {
        for (name, allowed) in doors {
            // `crate::dicom::` is our own room: only an extern path starts a word.
            if mentions(&text, name) && !allowed.iter().any(|d| path.starts_with(d)) {
                wrong.push(format!("{} uses {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn imports_run_one_way() {
    let mut wrong = Vec::new();
    for (path, text) in sources("schemas") {
        if mentions(&text, "voxmill_stages") || mentions(&text, "voxmill::") {
            wrong.push(path);
        }
    }
    for (path, text) in sources("stages") {
        if mentions(&text, "voxmill::") {
            wrong.push(path);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?} look upwards");
}

#[test]
fn a_stage_imports_no_other_stage() {
    let verbs: Vec<String> = sources("stages")
        .into_iter()
        .filter(|(p, _)| p.components().count() == 2)
        .map(|(p, _)| p.file_stem().unwrap().to_str().unwrap().to_string())
        .filter(|n| !["lib", "stage", "error"].contains(&n.as_str()))
        .collect();
    assert!(verbs.len() >= 10, "{verbs:?}");
    let mut wrong = Vec::new();
    for (path, text) in sources("stages").into_iter().filter(|(p, _)| p.file_name().unwrap() != "lib.rs") {
        for verb in &verbs {
            if code(&text).any(|l| l.contains(&format!("crate::{verb}::"))) {
                wrong.push(format!("{} imports {verb}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn ops_and_model_maths_open_no_file() {
    for (path, text) in sources("stages/ops") {
        assert!(!mentions(&text, "std::fs"), "{} touches the file system", path.display());
    }
}

#[test]
fn the_engine_names_no_stage() {
    for (path, text) in sources("pipeline") {
        for name in ["\"assemble\"", "\"annotate\"", "\"resample\"", "\"train\"", "\"evaluate\"", "\"export\""] {
            assert!(!mentions(&text, name), "{} names the stage {name}", path.display());
        }
    }
}

#[test]
fn what_is_fuzzed_is_built_of_what_the_program_is_built_of() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let (table, fuzz) = (read("Cargo.toml"), read("tests/fuzz/Cargo.toml"));
    let own = ["libfuzzer-sys", "voxmill-schemas"];
    let lines: Vec<&str> = fuzz.lines().skip_while(|l| *l != "[dependencies]").skip(1).take_while(|l| !l.starts_with('[')).collect();
    let wrong =
        lines.iter().filter(|l| l.contains(" = ") && !own.iter().any(|name| l.starts_with(name)) && !table.lines().any(|t| t == **l));
    assert_eq!(wrong.collect::<Vec<_>>(), Vec::<&&str>::new(), "lines that do not stand so in the version table");
    // The very releases, too: a fault of a codec is found in the one that is shipped.
    let locked = |lock: String| -> Vec<String> {
        lock.split("[[package]]").map(|p| p.lines().take(3).collect::<Vec<_>>().join(" ")).filter(|p| p.contains("name = ")).collect()
    };
    let (shipped, fuzzed) = (locked(read("Cargo.lock")), locked(read("tests/fuzz/Cargo.lock")));
    let name = |p: &String| p.split(" version").next().map(str::to_string);
    let other = fuzzed.iter().filter(|p| !shipped.contains(p) && shipped.iter().any(|s| name(s) == name(p)));
    assert_eq!(other.collect::<Vec<_>>(), Vec::<&String>::new(), "other releases than in the root Cargo.lock: copy it and build");
}
