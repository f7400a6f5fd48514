//! Parameters by name: initial values, reading and writing. Names are those of MONAI's `state_dict`, each parameter once.
//! Written: safetensors. Read: safetensors and PyTorch's `.pt`/`.pth`; MONAI's aliases (`skip_layers.…`) are passed over.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::graph::Spec;
use super::net::Net;
use crate::error::Error;

/// A parameter outside a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// By name, so in one order.
pub type Weights = BTreeMap<String, Weight>;

/// The values of a tensor, in array order.
pub(super) fn values<const D: usize>(t: Tensor<D>) -> Result<Vec<f32>, Error> {
    let read = |e: &dyn std::fmt::Debug| Error::Model { why: format!("cannot read a tensor back from the device: {e:?}") };
    t.try_into_data().map_err(|e| read(&e))?.try_into_vec::<f32>().map_err(|e| read(&e))
}

/// Copies the parameters out of a network.
pub(super) fn collect(net: &Net) -> Result<Weights, Error> {
    let one = |(spec, param): (&Spec, &Param<Tensor<1>>)| {
        Ok((spec.name.clone(), Weight { shape: spec.shape.clone(), values: values(param.val())? }))
    };
    net.graph.params.iter().zip(&net.params).map(one).collect()
}

/// The network with other parameters: `value(spec)` gives each one's values.
fn replace(net: Net, mut value: impl FnMut(&Spec) -> Result<Vec<f32>, Error>) -> Result<Net, Error> {
    let graph = net.graph;
    let one = |(spec, param): (&Spec, Param<Tensor<1>>)| {
        let (values, device) = (value(spec)?, param.val().device());
        let count = values.len();
        Ok(Param::from_tensor(Tensor::from_data(TensorData::new(values, [count]), &device)))
    };
    let params = graph.params.iter().zip(net.params).map(one).collect::<Result<_, Error>>()?;
    Ok(Net { params, graph })
}

/// MONAI's initial values: convolutions Kaiming normal for a leaky ReLU of slope 0.01, fan-in = shape[1] · kernel voxels (for transposed
/// convolutions too, where shape[1] is the output channels, as PyTorch counts); linear layers normal with variance 1 / (3 · fan-in), which is that of
/// PyTorch's uniform ones; biases 0; norm scales 1. Every parameter draws from its own stream, named by `seed` and its name, so its values depend on
/// nothing else.
pub(super) fn initialise(net: Net, seed: u64) -> Result<Net, Error> {
    replace(net, |spec| {
        let (name, count) = (&spec.name, spec.shape.iter().product());
        let drawn = |std: f64| normal(seed, name, count).map(|v| (v * std) as f32).collect();
        Ok(match &spec.shape[..] {
            [_, fan, z, y, x] => drawn((2.0 / (1.0 + 0.01f64 * 0.01)).sqrt() / ((fan * z * y * x) as f64).sqrt()),
            [_, fan] => drawn((3.0 * *fan as f64).sqrt().recip()),
            _ if name.ends_with("weight") => vec![1.0; count],
            _ => vec![0.0; count],
        })
    })
}

/// Standard normal values (Box–Muller) of the stream `name`.
fn normal(seed: u64, name: &str, count: usize) -> impl Iterator<Item = f64> {
    let mut h = blake3::Hasher::new();
    h.update(b"weights");
    h.update(&seed.to_le_bytes());
    h.update(name.as_bytes());
    let mut rng = ChaCha8Rng::from_seed(*h.finalize().as_bytes());
    let mut uniform = move || ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    (0..count.div_ceil(2))
        .flat_map(move |_| {
            let (r, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
            [r * angle.cos(), r * angle.sin()]
        })
        .take(count)
}

/// Names that are listed on each side of a mismatch.
const LISTED: usize = 6;

/// The network with `weights`, which must hold every parameter in its shape and nothing that the network does not have; what stands under one of the
/// graph's aliases is passed over. A kernel of two axes fits one whose third is 1 (2-D networks).
pub(super) fn load(net: Net, mut weights: Weights, what: &str) -> Result<Net, Error> {
    let refuse = |why: String| Error::Model { why: format!("{what}: {why}") };
    let graph = net.graph.clone();
    weights.retain(|name, _| !graph.is_alias(name));
    let shapes = |name: &str, shape: &[usize]| format!("{name} {shape:?}");
    let wanted: BTreeMap<&str, &[usize]> = graph.params.iter().map(|p| (p.name.as_str(), p.shape.as_slice())).collect();
    let lacking: Vec<String> = wanted.iter().filter(|(n, _)| !weights.contains_key(**n)).map(|(n, s)| shapes(n, s)).collect();
    let foreign: Vec<String> = weights.iter().filter(|(n, _)| !wanted.contains_key(n.as_str())).map(|(n, w)| shapes(n, &w.shape)).collect();
    let differing: Vec<String> = weights
        .iter()
        .filter_map(|(n, w)| {
            let want = *wanted.get(n.as_str())?;
            (!fits(&w.shape, want)).then(|| format!("{n} has shape {:?}, this network wants {want:?}", w.shape))
        })
        .collect();
    let mut faults = Vec::new();
    if !lacking.is_empty() {
        faults.push(format!("lacks {} of {} parameters: {}", lacking.len(), wanted.len(), listed(&lacking)));
    }
    if !foreign.is_empty() {
        faults.push(format!("holds {} that this network does not have: {}", foreign.len(), listed(&foreign)));
    }
    if !differing.is_empty() {
        faults.push(listed(&differing));
    }
    if !faults.is_empty() {
        return Err(refuse(format!("{}; are network, channels and classes those it was trained with?", faults.join("; "))));
    }
    replace(net, |spec| {
        let w = weights.remove(&spec.name).expect("nothing is lacking");
        match w.values.iter().find(|v| !v.is_finite()) {
            Some(bad) => Err(refuse(format!("{} holds {bad}", spec.name))),
            None => Ok(w.values),
        }
    })
}

fn listed(names: &[String]) -> String {
    let more = names.len().saturating_sub(LISTED);
    let first = names.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
    if more == 0 { first } else { format!("{first} and {more} more") }
}

/// Whether values of shape `found` are those of a parameter of shape `wanted`.
fn fits(found: &[usize], wanted: &[usize]) -> bool {
    match (found, wanted) {
        ([a, b, y, x], [wa, wb, 1, wy, wx]) => [a, b, y, x] == [wa, wb, wy, wx],
        _ => found == wanted,
    }
}

/// Reads a weights file of at most `limit_bytes`. The aliases that MONAI's DynUNet registers under `skip_layers.` are left out, the prefixes of
/// data-parallel training (`module.`) and of `torch.compile` (`_orig_mod.`) are cut off.
pub fn read(path: &Path, limit_bytes: u64) -> Result<Weights, Error> {
    let found = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    if found > limit_bytes {
        return Err(Error::TooLarge { what: path.display().to_string(), wanted_bytes: found, limit_bytes });
    }
    let all = match path.extension().and_then(|e| e.to_str()) {
        Some("pt" | "pth" | "bin" | "ckpt") => read_pytorch(path, limit_bytes)?,
        _ => read_safetensors(path)?,
    };
    let named = |(name, w): (String, Weight)| {
        let bare = name.strip_prefix("module.").unwrap_or(&name);
        (bare.strip_prefix("_orig_mod.").unwrap_or(bare).to_string(), w)
    };
    Ok(all.into_iter().map(named).filter(|(name, _)| !name.starts_with("skip_layers.")).collect())
}

/// Weights of a network whose axes are called otherwise: its axis i becomes axis `axes[i]` of z, y, x. Kernels of two axes lie in the plane of the last two
/// of its axes.
pub fn turned(weights: Weights, axes: [usize; 3]) -> Weights {
    let turn = |w: Weight| -> Weight {
        let (outer, size) = match w.shape[..] {
            [a, b, y, x] => ([a, b], [1, y, x]),
            [a, b, z, y, x] => ([a, b], [z, y, x]),
            _ => return w,
        };
        let mut to = size;
        (0..3).for_each(|i| to[axes[i]] = size[i]);
        let count: usize = size.iter().product();
        let mut values = vec![0f32; w.values.len()];
        for (from, out) in w.values.chunks_exact(count.max(1)).zip(values.chunks_exact_mut(count.max(1))) {
            for (v, value) in from.iter().enumerate() {
                let at = [v / size[2] / size[1], v / size[2] % size[1], v % size[2]];
                let mut place = [0; 3];
                (0..3).for_each(|i| place[axes[i]] = at[i]);
                out[(place[0] * to[1] + place[1]) * to[2] + place[2]] = *value;
            }
        }
        Weight { shape: vec![outer[0], outer[1], to[0], to[1], to[2]], values }
    };
    weights.into_iter().map(|(name, w)| (name, turn(w))).collect()
}

fn refuse(path: &Path) -> impl Fn(&dyn std::fmt::Display) -> Error {
    move |why| Error::Model { why: format!("{}: {why}", path.display()) }
}

fn read_safetensors(path: &Path) -> Result<Weights, Error> {
    let refuse = refuse(path);
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| refuse(&e))?;
    file.iter()
        .map(|(name, view)| {
            let values = decode(view.dtype(), view.data()).ok_or_else(|| refuse(&format!("{name} has type {:?}", view.dtype())))?;
            Ok((name.to_string(), Weight { shape: view.shape().to_vec(), values }))
        })
        .collect()
}

/// Little-endian values of any float type as float32; integers become floats too (counters of other tools).
fn decode(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|b| f(*b)).collect()
    }
    Some(match dtype {
        Dtype::F32 => each(bytes, f32::from_le_bytes),
        Dtype::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
        Dtype::F16 => each(bytes, |b| half::f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => each(bytes, |b| half::bf16::from_le_bytes(b).to_f32()),
        Dtype::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
        _ => return None,
    })
}

/// A `state_dict`, at the root of the file or under `state_dict`, `model` or `network_weights` (nnU-Net).
fn read_pytorch(path: &Path, limit_bytes: u64) -> Result<Weights, Error> {
    let refuse = refuse(path);
    let file = pytorch_reader::PytorchReader::new(path).map_err(|e| refuse(&e))?;
    let tensors: BTreeMap<_, _> = file.into_tensors().into_iter().collect();
    // The aliases are views of the same storage, so the bytes asked for can be twice those in the file.
    let wanted_bytes = tensors.values().fold(0u64, |a, t| a.saturating_add(t.byte_len() as u64));
    let limit_bytes = limit_bytes.saturating_mul(2);
    if wanted_bytes > limit_bytes {
        return Err(Error::TooLarge { what: path.display().to_string(), wanted_bytes, limit_bytes });
    }
    let root = ["state_dict.", "model.", "network_weights."].into_iter().find(|r| tensors.keys().any(|k| k.starts_with(r))).unwrap_or("");
    let mut out = Weights::new();
    for (name, t) in &tensors {
        let Some(name) = name.strip_prefix(root) else { continue };
        let dtype = match t.dtype() {
            pytorch_reader::DType::F32 => Dtype::F32,
            pytorch_reader::DType::F64 => Dtype::F64,
            pytorch_reader::DType::F16 => Dtype::F16,
            pytorch_reader::DType::BF16 => Dtype::BF16,
            pytorch_reader::DType::I64 => Dtype::I64,
            other => return Err(refuse(&format!("{name} has type {other:?}"))),
        };
        let bytes = t.read().map_err(|e| refuse(&e))?;
        let values = decode(dtype, &bytes).ok_or_else(|| refuse(&format!("{name} is not made of floats")))?;
        out.insert(name.to_string(), Weight { shape: t.shape().to_vec(), values });
    }
    Ok(out)
}

/// Writes safetensors: beside the target, synced, then renamed over it. Equal weights give equal bytes.
pub fn write(path: &Path, weights: &Weights) -> Result<(), Error> {
    let bytes: BTreeMap<&String, Vec<u8>> =
        weights.iter().map(|(name, w)| (name, w.values.iter().flat_map(|v| v.to_le_bytes()).collect())).collect();
    let views = weights.iter().map(|(name, w)| {
        let view = TensorView::new(Dtype::F32, w.shape.clone(), &bytes[name]).expect("a weight has as many values as its shape says");
        (name.as_str(), view)
    });
    let file = safetensors::serialize(views, None).map_err(|e| refuse(path)(&e))?;
    let beside = path.with_extension("partial");
    let save = || -> std::io::Result<()> {
        let mut f = std::fs::File::create(&beside)?;
        f.write_all(&file)?;
        f.sync_all()?;
        std::fs::rename(&beside, path)
    };
    save().map_err(Error::io("write", path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let weights = Weights::from([
            ("b.weight".into(), Weight { shape: vec![2, 3], values: vec![1., 2., 3., 4., 5., 6.5] }),
            ("a.bias".into(), Weight { shape: vec![1], values: vec![-0.0] }),
            ("skip_layers.a.bias".into(), Weight { shape: vec![1], values: vec![9.0] }),
        ]);
        write(&path, &weights).unwrap();
        let first = std::fs::read(&path).unwrap();
        write(&path, &weights).unwrap();
        assert_eq!(first, std::fs::read(&path).unwrap());
        let back = read(&path, 1 << 20).unwrap();
        assert_eq!(back.len(), 2);
        assert_eq!(back["b.weight"], weights["b.weight"]);
        assert!(matches!(read(&path, 10), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn damaged_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in
            [("w.safetensors", &b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"[..]), ("w.pt", b"PK\x03\x04nonsense"), ("e.safetensors", b"")]
        {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            assert!(matches!(read(&path, 1 << 20), Err(Error::Model { .. })));
        }
    }

    #[test]
    fn normal_values_have_unit_variance() {
        let v: Vec<f64> = normal(1, "x", 20001).collect();
        assert_eq!(v.len(), 20001);
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        let variance = v.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / v.len() as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03);
        assert_ne!(v[0], normal(1, "y", 1).next().unwrap());
    }
}
