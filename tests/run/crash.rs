//! Killed, raced and interrupted runs.

use std::time::{Duration, Instant};

use crate::bench::Bench;

/// Wherever the process is killed, the next run ends with the artifacts of an undisturbed one, byte for byte.
#[test]
fn kill_minus_nine_leaves_nothing_wrong() {
    let calm = Bench::new(3);
    // The archive's place is part of what the index writes: all runs share one.
    let started = Instant::now();
    calm.run(&[]).expect(0);
    let whole = started.elapsed();
    let expected = calm.artifacts();
    for k in 0..6u32 {
        std::fs::remove_dir_all(calm.path("work")).unwrap();
        let _ = std::fs::remove_dir_all(calm.path("nvme"));
        let mut child = calm.command(&["run", "p.yaml", "--quiet"]).spawn().unwrap();
        // Spread over the run, off any beat of its own.
        std::thread::sleep(whole.mul_f64((k as f64 + 0.37) / 6.2));
        child.kill().unwrap();
        child.wait().unwrap();
        calm.run(&[]).expect(0);
        assert_eq!(expected, calm.artifacts(), "killed after {k}/6 of the run");
        let left: Vec<_> = std::fs::read_dir(calm.path("work/store/drafts")).map(|d| d.flatten().collect()).unwrap_or_default();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn two_processes_share_the_work() {
    let b = Bench::new(4);
    let spawn = || {
        let mut c = b.command(&["run", "p.yaml", "ready", "--log", "json"]);
        c.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap()
    };
    let (x, y) = (spawn(), spawn());
    let (x, y) = (x.wait_with_output().unwrap(), y.wait_with_output().unwrap());
    assert!(x.status.success() && y.status.success(), "{}\n{}", String::from_utf8_lossy(&x.stderr), String::from_utf8_lossy(&y.stderr));
    let made = |o: &std::process::Output| {
        let text = String::from_utf8_lossy(&o.stderr).into_owned();
        let end = text.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok()).find(|v| v["event"] == "end").unwrap();
        end["nodes"].as_array().unwrap().iter().map(|n| n["made"].as_u64().unwrap()).sum::<u64>()
    };
    let artifacts = b.artifacts().keys().filter(|k| k.ends_with("artifact.json")).count() as u64;
    assert_eq!(made(&x) + made(&y), artifacts, "each artifact was made once");
}

#[test]
fn ctrl_c_says_how_to_go_on() {
    let b = Bench::new(4);
    let mut child = b.command(&["run", "p.yaml"]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !b.path("work/heads/small/image.json").exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let status = child.wait().unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut text).unwrap();
    assert_eq!(status.code(), Some(130), "{text}");
    assert!(text.contains("goes on where this run stopped"), "{text}");
    b.run(&[]).expect(0);
}
