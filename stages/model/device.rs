//! Choosing where the numbers are crunched: the CPU, or a GPU where one is compiled in and present.
//! A device that was asked for by name and is not there is an error, never a silent fallback.

use crate::error::Error;

/// A device that exists. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Device {
    pub(super) burn: burn::tensor::Device,
    /// `cpu`, `cuda:0`, `wgpu`: what was chosen.
    pub name: String,
    /// Said to the user when `auto` had to do without a GPU.
    pub note: Option<String>,
}

impl Device {
    /// The CPU, always there.
    pub fn cpu() -> Device {
        Device { burn: burn::tensor::Device::flex(), name: "cpu".into(), note: None }
    }

    /// Results on one kind of CPU are the same bytes on every run; a GPU's may differ in their last bits.
    pub fn is_exact(&self) -> bool {
        self.name == "cpu"
    }

    /// For tensors that take part in a backward pass.
    pub(super) fn training(&self) -> burn::tensor::Device {
        self.burn.clone().autodiff()
    }
}

/// Opens a device by its name: `auto`, `cpu`, `cuda`, `cuda:1`, `wgpu`, `wgpu:0` (the number counts from 0).
/// `auto` takes CUDA, then a GPU that wgpu finds, then the CPU.
pub fn device(spec: &str) -> Result<Device, Error> {
    let refuse = |why: String| Error::Device { wanted: spec.into(), why };
    let (kind, index) = match spec.split_once(':') {
        None => (spec, None),
        Some((kind, i)) => (kind, Some(i.parse::<usize>().map_err(|_| refuse(format!("{i:?} is no device number")))?)),
    };
    match (kind, index) {
        ("cpu", None) => Ok(Device::cpu()),
        ("auto", None) => Ok(auto()),
        ("cuda", i) => cuda(i.unwrap_or(0)).map_err(refuse),
        ("wgpu", i) => wgpu(i).map_err(refuse),
        _ => Err(refuse("unknown device; write auto, cpu, cuda, cuda:1, wgpu or wgpu:1".into())),
    }
}

fn auto() -> Device {
    let tried = match (cuda(0), wgpu(None)) {
        (Ok(d), _) | (Err(_), Ok(d)) => return d,
        (Err(a), Err(b)) => format!("no GPU: cuda: {a}; wgpu: {b}"),
    };
    Device { note: Some(tried), ..Device::cpu() }
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Device, String> {
    // Enumerating is safe without a driver (the list is empty); opening a device that is not there would panic at its first operation.
    let found = burn::tensor::Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec().len();
    if index >= found {
        return Err(format!("{found} CUDA device(s) found; check `nvidia-smi`"));
    }
    Ok(Device { burn: burn::tensor::Device::cuda(index), name: format!("cuda:{index}"), note: None })
}

#[cfg(not(feature = "cuda"))]
fn cuda(_index: usize) -> Result<Device, String> {
    Err("this build has no CUDA; build with `--features cuda`".into())
}

/// Without a number: the strongest adapter that is a GPU. A software adapter (a CPU that plays GPU) is never chosen.
#[cfg(feature = "wgpu")]
fn wgpu(index: Option<usize>) -> Result<Device, String> {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use burn::tensor::DeviceKind;

    // A wgpu runtime can be opened once in a process.
    static OPEN: Mutex<BTreeMap<Option<usize>, Device>> = Mutex::new(BTreeMap::new());
    let mut open = OPEN.lock().expect("opening a device does not panic");
    if let Some(d) = open.get(&index) {
        return Ok(d.clone());
    }
    let kinds = match index {
        Some(i) => vec![DeviceKind::DiscreteGpu(i), DeviceKind::IntegratedGpu(i), DeviceKind::VirtualGpu(i)],
        None => vec![DeviceKind::DiscreteGpu(0), DeviceKind::IntegratedGpu(0), DeviceKind::VirtualGpu(0)],
    };
    let mut why = String::new();
    for kind in kinds {
        match burn::tensor::Device::wgpu_options().device_kind(kind).init() {
            Ok(burn) => {
                let name = index.map_or("wgpu".into(), |i| format!("wgpu:{i}"));
                let device = Device { burn, name, note: None };
                open.insert(index, device.clone());
                return Ok(device);
            }
            Err(e) => why = format!("no adapter ({e}); check `vulkaninfo --summary`"),
        }
    }
    Err(why)
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(_index: Option<usize>) -> Result<Device, String> {
    Err("this build has no wgpu; build with `--features wgpu`".into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn auto_always_finds_a_device() {
        let d = device("auto").unwrap();
        assert!(d.name != "cpu" || d.note.unwrap().contains("no GPU"));
    }

    #[test]
    fn unknown_devices_are_refused_by_name() {
        for spec in ["gpu", "cpu:1", "cuda:x", ""] {
            assert!(matches!(device(spec), Err(Error::Device { wanted, .. }) if wanted == spec));
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_is_not_compiled_in_says_how_to_get_it() {
        assert!(device("cuda:0").unwrap_err().to_string().contains("--features cuda"));
    }
}
