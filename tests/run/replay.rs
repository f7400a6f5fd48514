//! `voxmill replay`: the batch of a step again, and the table of patches that it is made from.

use serde_json::Value;
use voxmill_stages::nifti;

use crate::bench::Bench;

fn rows(b: &Bench, sql: &str) -> Vec<Value> {
    serde_json::from_str(&b.voxmill(&["query", "p.yaml", sql, "--format", "json"]).expect(0).stdout).unwrap()
}

#[test]
fn the_batch_of_a_step_holds_the_voxels_that_the_table_names() {
    let b = Bench::new(3);
    b.run(&[]).expect(0);
    // Two training cases and a batch of two: a step an epoch, each of which sees both.
    let patches = rows(&b, "select * from patches order by step, slot");
    assert_eq!(patches.iter().map(|p| (p["step"].as_u64(), p["slot"].as_u64())).collect::<Vec<_>>(), {
        let at = |step, slot| (Some(step), Some(slot));
        [at(1, 0), at(1, 1), at(2, 0), at(2, 1)]
    });
    let trained = rows(&b, "select \"case\" from split where part = 'train' order by \"case\"");
    for step in [0, 2] {
        let mut of_step: Vec<&Value> = patches[step..step + 2].iter().map(|p| &p["case"]).collect();
        of_step.sort_by_key(|c| c.as_str());
        assert_eq!(of_step, trained.iter().map(|r| &r["case"]).collect::<Vec<_>>());
    }
    b.voxmill(&["replay", "p.yaml", "net", "2", "--output", "again"]).expect(0).says("again");
    for p in &patches[2..] {
        // No augmentation: the box itself, read another way.
        assert_eq!(p["augment"], "[]");
        let (case, slot) = (p["case"].as_str().unwrap(), p["slot"].as_u64().unwrap());
        b.voxmill(&["cache", "export", "p.yaml", &format!("ready/{case}"), "copies"]).expect(0);
        let whole = voxmill_stages::volume::Volume::read(&b.path("copies/ready").join(case)).unwrap();
        let voxels = whole.voxels.to_f32().into_owned();
        let labels = whole.labels.unwrap().voxels;
        let size = whole.geometry.size;
        let start = ["start_z", "start_y", "start_x"].map(|n| p[n].as_i64().unwrap() as usize);
        let patch = nifti::read(&b.path(&format!("again/2-{slot}.nii.gz"))).unwrap();
        let drawn = nifti::read(&b.path(&format!("again/2-{slot}-labels.nii.gz"))).unwrap();
        let (patch, drawn) = (patch.voxels.to_f32().into_owned(), drawn.voxels.to_f32().into_owned());
        assert_eq!((patch.len(), drawn.len()), (4096, 4096));
        for o in 0..4096 {
            let (z, y, x) = (start[0] + o / 256, start[1] + o / 16 % 16, start[2] + o % 16);
            let at = (z * size.y + y) * size.x + x;
            assert_eq!((patch[o], drawn[o]), (voxels[at], labels[at] as f32), "voxel {o} of slot {slot}");
        }
    }
    let said = b.voxmill(&["replay", "p.yaml", "net", "2", "--format", "png"]).expect(0);
    let folder = said.stdout.lines().last().unwrap().to_string();
    assert!(folder.starts_with("replayed/net-"), "{folder}");
    assert!(std::fs::read(b.path(&folder).join("2-1.png")).unwrap().starts_with(b"\x89PNG"));
    b.voxmill(&["replay", "p.yaml", "net", "3"]).expect(2).says("it has 1 to 2");
    b.voxmill(&["replay", "p.yaml", "seg", "1"]).expect(2).says("no model");
}
