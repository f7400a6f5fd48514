//! What was typed behind `voxmill convert`, and the pipeline that it stands for.

use std::path::{Path, PathBuf};

use voxmill_stages::dicom::names::Names;
use voxmill_stages::dicom::{keys, name_file, walk};
use voxmill_stages::error::{Error, chain};

use super::{FILES, IMAGES, INDEX, LABELS, words};
use crate::cli::{ConvertArgs, ConvertColour, ConvertGaps, ConvertNames, ConvertRepeats, ConvertTo, word};
use crate::infer;
use crate::session::Fault;

/// The built-in pipeline is kept under this name in the workspace: `voxmill query` and `voxmill trace` take it.
pub const FILE: &str = "convert.yaml";

/// A conversion, with its places made absolute.
pub struct Wanted {
    pub archive: String,
    pub out: PathBuf,
    pub workspace: PathBuf,
    /// What the archive goes by where it must not be named: a hash under the key of the pseudonyms.
    pub archive_id: String,
    /// Whether there was no workspace, and no OUT, before.
    is_new: bool,
    is_out_new: bool,
    args: ConvertArgs,
}

impl Wanted {
    pub fn of(a: &ConvertArgs) -> Result<Self, Fault> {
        if !a.archive.exists() {
            return Err(Fault::Wrong(format!("there is no archive {}: give the folder that holds the DICOM files", a.archive.display())));
        }
        infer::apart("ARCHIVE", &a.archive, &a.out)?;
        if a.to == ConvertTo::Dicom && (a.labels || a.condition.is_some() || a.deidentify == ConvertNames::None) {
            return Err(Fault::Wrong(
                "--to dicom writes every DICOM file de-identified: it takes no --labels, no --where and no --deidentify none".into(),
            ));
        }
        if a.to == ConvertTo::Dicom {
            let ignored = [
                ("--gaps", a.gaps != ConvertGaps::Refuse),
                ("--repeats", a.repeats != ConvertRepeats::Stack),
                ("--colour", a.colour != ConvertColour::Channels),
            ];
            if let Some((option, _)) = ignored.iter().find(|(_, is_given)| *is_given) {
                return Err(Fault::Wrong(format!("--to dicom makes no volumes, it writes the files as they are: it takes no {option}")));
            }
        }
        let of_names = [("--key-env", a.key_env.is_some()), ("--key-file", a.key_file.is_some()), ("--name-file", a.name_file.is_some())];
        for (option, is_given) in of_names {
            if is_given && a.deidentify == ConvertNames::None {
                return Err(Fault::Wrong(format!("{option} is for pseudonyms, and --deidentify none makes none: leave one of them out")));
            }
        }
        if let Some(workspace) = &a.workspace {
            infer::apart("ARCHIVE", &a.archive, workspace)?;
        }
        let absolute = |p: &Path| std::path::absolute(p).unwrap_or_else(|_| p.to_path_buf());
        let out = absolute(&a.out);
        let workspace = a.workspace.as_deref().map_or_else(|| out.join(".voxmill"), absolute);
        let archive = utf8(&absolute(&a.archive))?;
        let key_file = a.key_file.as_deref().map(|f| utf8(&absolute(f))).transpose()?;
        let name_file = a.name_file.as_deref().map(|f| utf8(&absolute(f))).transpose()?;
        secrets_apart(
            a.key_file.as_deref().filter(|_| a.new_key),
            a.name_file.as_deref(),
            &a.archive,
            &[("OUT", &out), ("the workspace", &workspace)],
        )?;
        if !a.show_yaml {
            not_empty(&a.archive)?;
        }
        let is_key_needed = !a.show_yaml && a.deidentify == ConvertNames::Basic;
        let archive_id = if is_key_needed {
            let names = key(a.key_env.as_deref(), key_file.as_deref(), a.new_key)?;
            format!("{:032x}", u128::from_be_bytes(names.place(&archive)))
        } else {
            blake3::hash(archive.as_bytes()).to_hex()[..16].to_string()
        };
        // The pipeline is run from the workspace, and a pipeline that is kept may be run from anywhere.
        let args = ConvertArgs { key_file: key_file.map(PathBuf::from), name_file: name_file.map(PathBuf::from), ..a.clone() };
        let (is_new, is_out_new) = (!workspace.exists(), !out.exists());
        Ok(Self { archive, out, workspace, archive_id, is_new, is_out_new, args })
    }

    pub fn format(&self) -> &'static str {
        match self.args.to {
            ConvertTo::Nifti => "nifti",
            ConvertTo::OmeZarr => "ome-zarr",
            ConvertTo::Dicom => "dicom",
        }
    }

    pub fn has_labels(&self) -> bool {
        self.args.labels
    }

    pub fn is_json(&self) -> bool {
        self.args.json
    }

    /// Whether pseudonyms are made with a secret.
    pub fn has_key(&self) -> bool {
        self.args.key_env.is_some() || self.args.key_file.is_some()
    }

    /// Whether patients go by pseudonyms.
    pub fn is_hidden(&self) -> bool {
        self.args.deidentify == ConvertNames::Basic
    }

    /// What the page says of how it was made; no place of this machine.
    pub fn said(&self) -> Vec<(String, String)> {
        let mut said = vec![
            ("Format".to_string(), self.format().to_string()),
            ("De-identification".into(), word(self.args.deidentify)),
            ("Gaps".into(), word(self.args.gaps)),
            ("Repeats".into(), word(self.args.repeats)),
            ("Colour".into(), word(self.args.colour)),
        ];
        said.extend(self.args.condition.iter().map(|c| ("Where".to_string(), c.clone())));
        said.push(("Made by".into(), format!("voxmill {}", env!("CARGO_PKG_VERSION"))));
        said
    }

    /// Whether it is written down what pseudonyms of files stand for.
    pub fn has_name_file(&self) -> bool {
        self.args.name_file.is_some()
    }

    /// Takes away the workspace of a run that had nothing to work on, where it was the first and only one in it.
    pub fn clean_up(&self) {
        let n_in = |folder: &str| std::fs::read_dir(self.workspace.join(folder)).map_or(0, Iterator::count);
        if !self.is_new || n_in("store/artifacts") > 0 || n_in("lineage/runs") > 1 {
            return;
        }
        // What cannot be removed is in nobody's way.
        let _ = std::fs::remove_dir_all(&self.workspace);
        if self.is_out_new {
            let _ = std::fs::remove_dir(&self.out);
        }
    }

    /// The pipeline that is run.
    pub fn yaml(&self) -> String {
        self.yaml_of(&text(&self.archive), self.args.name_file.as_deref())
    }

    /// The pipeline that is kept: under pseudonyms it does not say where the archive is.
    fn yaml_kept(&self) -> String {
        let archive = "\"${ARCHIVE:-archive}\" # not written down: --set ARCHIVE=PLACE says it";
        if self.is_hidden() { self.yaml_of(archive, None) } else { self.yaml() }
    }

    fn yaml_of(&self, archive: &str, name_file: Option<&Path>) -> String {
        let a = &self.args;
        let mut index = vec![("archive", archive.to_string()), ("deidentify", word(a.deidentify))];
        index.extend(a.key_env.iter().map(|k| ("key_env", text(k))));
        index.extend(a.key_file.iter().map(|k| ("key_file", text(&k.to_string_lossy()))));
        index.extend(name_file.map(|f| ("name_file", text(&f.to_string_lossy()))));
        let mut image: Vec<(&str, String)> = a.condition.iter().map(|c| ("where", text(c))).collect();
        image.extend([
            ("gaps", word(a.gaps)),
            ("repeats", word(a.repeats)),
            ("colour", word(a.colour)),
            ("geometry", "unknown".into()),
            ("single_slice", "keep".into()),
        ]);
        let mut files = vec![("format", self.format().to_string())];
        if a.to == ConvertTo::Nifti {
            files.push(("content", "both".into()));
        }
        files.extend([("names", "series".into()), ("sidecar", "true".into())]);
        let list = |with: &[(&str, String)]| with.iter().map(|(k, v)| format!("      {k}: {v}\n")).collect::<String>();
        let mut out = format!(
            "# What `voxmill convert` runs. Save it, change it, and go on with `voxmill run`.\nname: convert\nworkspace: {}\nstages:\n",
            text(&self.workspace.to_string_lossy())
        );
        if a.to == ConvertTo::Dicom {
            out += &format!("  {INDEX}:\n    uses: index\n    with:\n{}", list(&index));
            out += &format!("  {FILES}:\n    uses: deidentify\n    from: {INDEX}\n    with:\n");
            out += &list(&[("retain_dates", "shift".into()), ("retain_characteristics", "true".into())]);
            return out;
        }
        out += &format!("  {INDEX}:\n    uses: index\n    with:\n{}", list(&index));
        out += &format!("  {IMAGES}:\n    uses: assemble\n    from: {INDEX}\n    with:\n{}", list(&image));
        let mut last = IMAGES;
        if a.labels {
            let labels = [("classes", "all".to_string()), ("overlap", word(a.overlap)), ("unlabelled", "keep".into())];
            out +=
                &format!("  {LABELS}:\n    uses: annotate\n    from: {{ image: {IMAGES}, series: {INDEX} }}\n    with:\n{}", list(&labels));
            last = LABELS;
        }
        out += &format!("  {FILES}:\n    uses: export\n    from: {{ prediction: {last}, series: {INDEX} }}\n    with:\n{}", list(&files));
        out
    }

    /// Keeps the pipeline in the workspace; where it stands.
    pub fn write(&self) -> Result<PathBuf, Fault> {
        utf8(&self.workspace)?;
        std::fs::create_dir_all(&self.workspace).map_err(|source| Fault::Workspace { path: self.workspace.clone(), source })?;
        let path = self.workspace.join(FILE);
        let beside = path.with_extension(format!("{}.new", std::process::id()));
        let written = std::fs::write(&beside, self.yaml_kept()).and_then(|()| std::fs::rename(&beside, &path));
        if written.is_err() {
            let _ = std::fs::remove_file(&beside);
        }
        written.map_err(Error::io("write", &path))?;
        Ok(path)
    }
}

/// A new key, and the table of what pseudonyms stand for, are not handed on with what is made and not put into the archive.
pub fn secrets_apart(key: Option<&Path>, name_file: Option<&Path>, archive: &Path, out: &[(&str, &Path)]) -> Result<(), Fault> {
    let apart: Vec<(&str, &Path)> = out.iter().copied().chain([("ARCHIVE", archive)]).collect();
    for (option, file) in [("--key-file", key), ("--name-file", name_file)] {
        let Some(file) = file else { continue };
        if let Some((name, _)) = apart.iter().find(|(_, folder)| infer::is_within(file, folder)) {
            let file = file.display();
            return Err(Fault::Wrong(format!("{option} {file} lies inside {name}: give a place outside, it is not to be handed on")));
        }
    }
    name_file.map_or(Ok(()), |file| name_file::check(file, archive, &[])).map_err(|e| Fault::Wrong(chain(&e)))
}

/// An archive without a single file is told before anything is made.
pub fn not_empty(archive: &Path) -> Result<(), Fault> {
    if archive.is_dir() && walk::is_empty(archive) {
        let what = format!("nothing to do: there is no file in {}", archive.display());
        return Err(Fault::Wrong(format!("{what}: give the folder that holds the DICOM files")));
    }
    Ok(())
}

/// The names of the pseudonyms. A key that is not there, weak or open to others is a mistake of the command line, told before any work.
/// - `is_new`: the key file is made first
pub fn key(env: Option<&str>, file: Option<&str>, is_new: bool) -> Result<Names, Fault> {
    let wrong = |e: Error| Fault::Wrong(words::of(&chain(&e)));
    if let (Some(file), true) = (file, is_new) {
        keys::create(Path::new(file)).map_err(wrong)?;
    }
    keys::names(env, file).map_err(wrong)
}

/// A text in YAML: JSON's quotes and escapes are YAML's as well, and a `${` must not become a variable.
fn text(s: &str) -> String {
    serde_json::to_string(s).expect("a text is plain data").replace("${", "$${")
}

fn utf8(path: &Path) -> Result<String, Fault> {
    path.to_str()
        .map(String::from)
        .ok_or_else(|| Fault::Wrong(format!("{} is not UTF-8, and a pipeline is a text: give the folder another name", path.display())))
}
