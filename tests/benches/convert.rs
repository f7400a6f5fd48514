//! How fast an archive becomes voxels, against the tools people use today, in the same run. `cargo bench --bench convert`. Peers are looked for in the folder
//! `VOXMILL_PEERS` and in PATH (`pip install dcm2niix python-gdcm`); one that is missing is said on stderr and its line is left out. Page cache warm.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const VOXMILL: &str = env!("CARGO_BIN_EXE_voxmill");
/// Runs of each side; they take turns, and the fastest of each counts.
const TURNS: usize = 5;

fn main() {
    let dir = tempfile::tempdir_in(std::env::var("VOXMILL_BENCH_DIR").unwrap_or_else(|_| ".".into())).unwrap();
    let b = Bench { dir: dir.path().to_path_buf() };
    b.one_series();
    b.many_files();
    b.compressed();
    b.deidentified();
    b.memory();
}

struct Bench {
    dir: PathBuf,
}

/// What a command took.
#[derive(Clone, Copy)]
struct Took {
    wall_s: f64,
    cpu_s: f64,
}

impl Bench {
    /// 300 slices of 512×512: DICOM → compressed, checksummed OME-Zarr, against raw NIfTI.
    fn one_series(&self) {
        let archive = self.phantom("one", 1, 300, 512);
        let bytes = 300.0 * 512.0 * 512.0 * 2.0;
        let Some(dcm2niix) = peer("dcm2niix") else { return };
        let nifti = self.dir.join("nifti");
        let (mine, theirs) = turns(
            || self.convert(&archive, "zarr"),
            || {
                fresh(&nifti);
                time(Command::new(&dcm2niix).args(["-z", "n", "-o"]).arg(&nifti).arg(&archive))
            },
        );
        tell(
            "300x512x512 CT to OME-Zarr",
            bytes / 1e6 / mine.wall_s,
            "MB/s",
            "dcm2niix -z n to raw NIfTI, time",
            mine.wall_s / theirs.wall_s,
        );
        let (zarr, nifti) = (size_of(&self.dir.join("zarr/store")) as f64, size_of(&nifti) as f64);
        tell("size on disk", zarr / 1e6, "MB", "raw NIfTI", zarr / nifti);
    }

    /// 5,100 files: which series are there.
    fn many_files(&self) {
        let archive = self.phantom("many", 17, 300, 128);
        let n = 5100.0;
        let index = || {
            fresh(&self.dir.join("index"));
            let yaml = self.dir.join("index.yaml");
            std::fs::write(
                &yaml,
                format!(
                    "name: b\nworkspace: {0}/index\nstages:\n  series: {{ uses: index, with: {{ archive: {1} }} }}\n",
                    self.dir.display(),
                    archive.display()
                ),
            )
            .unwrap();
            time(Command::new(VOXMILL).arg("run").arg(&yaml).arg("--quiet"))
        };
        let python = std::env::var("VOXMILL_PYTHON").map_or_else(|_| peer("python3").unwrap_or_default(), PathBuf::from);
        let script = "import gdcm,sys\ns=gdcm.Scanner()\n[s.AddTag(gdcm.Tag(*t)) for t in ((0x20,0xd),(0x20,0xe),(0x8,0x18),(0x20,0x32),(0x20,0x37),(0x28,0x30))]\nd=gdcm.Directory()\nd.Load(sys.argv[1],True)\nimport time\na=time.time()\nassert s.Scan(d.GetFilenames())\nprint(len(d.GetFilenames()),time.time()-a)\n";
        let scan = || Command::new(&python).args(["-c", script]).arg(&archive).output().ok().filter(|o| o.status.success());
        let Some(first) = scan() else { return eprintln!("no gdcm for {}: pip install python-gdcm", python.display()) };
        let seconds =
            |o: &std::process::Output| -> f64 { String::from_utf8_lossy(&o.stdout).split_whitespace().nth(1).unwrap().parse().unwrap() };
        let (mut mine, mut theirs) = (f64::MAX, seconds(&first));
        for _ in 0..TURNS {
            mine = mine.min(index().wall_s);
            theirs = theirs.min(scan().as_ref().map_or(f64::MAX, seconds));
        }
        tell("index of 5,100 files, the whole command", n / mine, "files/s", "gdcm.Scanner alone", theirs / mine);
    }

    /// Archives in other transfer syntaxes: both cores have work.
    fn compressed(&self) {
        let Some(gdcmconv) = peer("gdcmconv") else { return };
        let raw = self.phantom("raw", 1, 96, 512);
        let bytes = 96.0 * 512.0 * 512.0 * 2.0;
        let plain = best(|| self.convert(&raw, "zarr-raw"));
        for (name, option) in [("JPEG-LS", "--jpegls"), ("JPEG 2000", "--j2k"), ("RLE", "--rle"), ("JPEG lossless", "--jpeg")] {
            let archive = self.dir.join(name);
            std::fs::create_dir_all(&archive).unwrap();
            for file in files(&raw) {
                let made = Command::new(&gdcmconv)
                    .arg(option)
                    .arg(&file)
                    .arg(archive.join(file.file_name().unwrap()))
                    .stderr(Stdio::null())
                    .status();
                assert!(made.unwrap().success(), "{name}");
            }
            let took = best(|| self.convert(&archive, "zarr-compressed"));
            tell(
                &format!("{name} 512x512 to OME-Zarr"),
                bytes / 1e6 / took.wall_s,
                "MB/s",
                "uncompressed, speed",
                plain.wall_s / took.wall_s,
            );
            let cores = std::thread::available_parallelism().unwrap().get() as f64;
            tell(&format!("{name}: cores at work"), took.cpu_s / took.wall_s, "cores", "all cores", took.cpu_s / took.wall_s / cores);
        }
    }

    /// DICOM → DICOM without the patient.
    fn deidentified(&self) {
        let Some(gdcmanon) = peer("gdcmanon") else { return };
        let archive = self.phantom("anon", 1, 300, 512);
        let (out, theirs_out) = (self.dir.join("clean"), self.dir.join("gdcm-clean"));
        let (mine, theirs) = turns(
            || {
                fresh(&out);
                time(Command::new(VOXMILL).arg("deidentify").arg(&archive).arg(&out).arg("--quiet"))
            },
            || {
                fresh(&theirs_out);
                std::fs::create_dir_all(&theirs_out).unwrap();
                time(
                    Command::new(&gdcmanon)
                        .args(["--dumb", "--remove", "0010,0010", "--recursive", "--continue", "-i"])
                        .arg(&archive)
                        .arg("-o")
                        .arg(&theirs_out),
                )
            },
        );
        tell(
            "512x512 CT to DICOM without the patient",
            300.0 / mine.wall_s,
            "files/s",
            "gdcmanon --dumb, speed",
            theirs.wall_s / mine.wall_s,
        );
    }

    /// Memory does not grow with the archive.
    fn memory(&self) {
        let (few, many) = (self.phantom("few", 4, 120, 256), self.phantom("more", 20, 120, 256));
        let (few, many) = (peak_mb(&mut self.conversion(&few, "zarr-few")), peak_mb(&mut self.conversion(&many, "zarr-many")));
        tell("peak memory of 20 series", many, "MB", "4 series", many / few);
    }

    /// A CT archive; the segmentations that come with it are taken out.
    fn phantom(&self, name: &str, patients: u32, slices: u32, size: u32) -> PathBuf {
        let out = self.dir.join(format!("archive-{name}"));
        let args = [patients, slices, size].map(|n| n.to_string());
        let [patients, slices, size] = args.each_ref().map(String::as_str);
        let made = Command::new(VOXMILL)
            .arg("phantom")
            .arg(&out)
            .args(["--patients", patients, "--slices", slices, "--size", size])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        files(&out).into_iter().filter(|f| f.ends_with("SEG.dcm")).for_each(|f| std::fs::remove_file(f).unwrap());
        out
    }

    fn convert(&self, archive: &Path, workspace: &str) -> Took {
        time(&mut self.conversion(archive, workspace))
    }

    fn conversion(&self, archive: &Path, workspace: &str) -> Command {
        let workspace = self.dir.join(workspace);
        fresh(&workspace);
        let yaml = self.dir.join("convert.yaml");
        let text = format!(
            "name: b\nworkspace: {}\nstages:\n  series: {{ uses: index, with: {{ archive: {} }} }}\n  image: {{ uses: assemble, from: series }}\n",
            workspace.display(),
            archive.display()
        );
        std::fs::write(&yaml, text).unwrap();
        let mut command = Command::new(VOXMILL);
        command.arg("run").arg(&yaml).arg("--quiet");
        command
    }
}

fn turns(mut mine: impl FnMut() -> Took, mut theirs: impl FnMut() -> Took) -> (Took, Took) {
    let (mut a, mut b) = (mine(), theirs());
    for _ in 1..TURNS {
        a = faster(a, mine());
        b = faster(b, theirs());
    }
    (a, b)
}

fn best(mut f: impl FnMut() -> Took) -> Took {
    (1..TURNS).fold(f(), |a, _| faster(a, f()))
}

fn faster(a: Took, b: Took) -> Took {
    if a.wall_s <= b.wall_s { a } else { b }
}

fn time(c: &mut Command) -> Took {
    let cpu = children_cpu_s();
    let started = Instant::now();
    // Not looked at in the meantime: that would take its time.
    let ended = c.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    let wall_s = started.elapsed().as_secs_f64();
    assert!(ended.success(), "{c:?}");
    Took { wall_s, cpu_s: children_cpu_s() - cpu }
}

/// The most memory that a command has at once, looked at every millisecond.
fn peak_mb(c: &mut Command) -> f64 {
    let mut child = c.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak_bytes = 0;
    loop {
        if let Some(ended) = child.try_wait().unwrap() {
            assert!(ended.success(), "{c:?}");
            return peak_bytes as f64 / 1e6;
        }
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find(|l| l.starts_with("VmHWM:")).and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
        peak_bytes = peak_bytes.max(line.unwrap_or(0) << 10);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// User and system time of the children that have ended, from /proc (proc(5): fields 16 and 17, hundredths of a second).
fn children_cpu_s() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default();
    fields.split_whitespace().skip(13).take(2).filter_map(|f| f.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn peer(name: &str) -> Option<PathBuf> {
    let folders = std::env::var("VOXMILL_PEERS").into_iter().chain(std::env::var("PATH"));
    let found = folders.flat_map(|f| f.split(':').map(PathBuf::from).collect::<Vec<_>>()).map(|f| f.join(name)).find(|f| f.is_file());
    if found.is_none() {
        eprintln!("{name} is not there: its figures are left out");
    }
    found
}

fn fresh(dir: &Path) {
    let _ = std::fs::remove_dir_all(dir);
    std::fs::create_dir_all(dir).unwrap();
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { out.extend(files(&path)) } else { out.push(path) }
    }
    out.sort();
    out
}

fn size_of(dir: &Path) -> u64 {
    files(dir).iter().map(|f| f.metadata().unwrap().len()).sum()
}

fn tell(metric: &str, value: f64, unit: &str, against: &str, ratio: f64) {
    let round = |v: f64| (v * 1e3).round() / 1e3;
    println!(
        "{}",
        serde_json::json!({"bench": "convert", "metric": metric, "value": round(value), "unit": unit, "against": against, "ratio": round(ratio)})
    );
}
