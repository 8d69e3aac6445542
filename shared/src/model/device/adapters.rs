//! Adapters of this machine: which there are, and opening one of them.
//!
//! They are looked for once a process, without opening any, through the first graphics API that reaches hardware.
//! On Linux that is Vulkan alone: asking OpenGL, too, starts whatever display servers' libraries there are, and
//! nothing that only OpenGL reaches computes a model.
//!
//! Invariant: an adapter is opened at most once, however often it is asked for; all graphics instances but the first
//! are made after that one is gone, since loaders don't bear two that come and go at once.

use std::path::Path;
use std::sync::OnceLock;

use burn::tensor::wgpu::{WgpuBackend, wgpu};
use burn::tensor::{Device, DeviceKind as Selector};
use futures_util::FutureExt as _;

use super::trial::Handles;
use super::{DeviceChoice, DeviceError, DeviceKind, Opened};

/// Graphics APIs that are asked, in this order.
const APIS: &[(wgpu::Backend, WgpuBackend)] = if cfg!(target_os = "linux") {
    &[(wgpu::Backend::Vulkan, WgpuBackend::Vulkan)]
} else if cfg!(target_vendor = "apple") {
    &[(wgpu::Backend::Metal, WgpuBackend::Metal)]
} else {
    &[
        (wgpu::Backend::Vulkan, WgpuBackend::Vulkan),
        (wgpu::Backend::Dx12, WgpuBackend::Dx12),
    ]
};

/// Where Linux shows its devices.
const DEVICES: &str = "/dev";

/// Beginnings of the names that Linux gives to what a GPU's driver opens; `dri` is a folder of them.
const GPU_FILES: [&str; 6] = ["dri", "nvidia", "dxg", "kfd", "kgsl", "mali"];

/// An adapter that was found.
#[derive(Debug)]
pub struct Adapter {
    /// What it calls itself.
    pub name: String,
    /// Hardware, or a GPU's interface over the CPU.
    pub kind: DeviceKind,
    selector: Selector,
    api: WgpuBackend,
    opened: OnceLock<Result<Opened, DeviceError>>,
}

impl Adapter {
    /// Opens it, or gives the device that was opened before.
    ///
    /// # Errors
    /// Its driver gives no device, now or the first time.
    pub fn open(&self) -> Result<Opened, DeviceError> {
        let open = || {
            let options = Device::wgpu_options()
                .device_kind(self.selector.clone())
                .graphics_api(self.api);
            match options.init_with_setup() {
                Ok((device, setup)) => Ok(Opened {
                    device,
                    name: self.name.clone(),
                    kind: self.kind,
                    gpu: Some(Handles::new(setup)),
                }),
                Err(error) => Err(DeviceError::Closed {
                    name: self.name.clone(),
                    reason: error.to_string(),
                }),
            }
        };
        self.opened.get_or_init(open).clone()
    }
}

/// Every adapter of the first graphics API that reaches hardware, else of the first that has any, in the order of
/// their numbers.
#[must_use]
pub fn adapters() -> &'static [Adapter] {
    static FOUND: OnceLock<Vec<Adapter>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut software = Vec::new();
        for (backend, api) in APIS {
            let found = adapters_of(*backend, *api);
            if found.iter().any(|one| one.kind == DeviceKind::Gpu) {
                return found;
            }
            if software.is_empty() {
                software = found;
            }
        }
        software
    })
}

fn adapters_of(backend: wgpu::Backend, api: WgpuBackend) -> Vec<Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: backend.into(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    // Only a browser takes its time.
    let listed = instance.enumerate_adapters(backend.into()).now_or_never();
    let mut counts = [0; 3];
    let mut next = |kind: usize| {
        counts[kind] += 1;
        counts[kind] - 1
    };
    let mut rasteriser = Some(Selector::Cpu);
    let selected = |adapter: wgpu::Adapter| {
        let info = adapter.get_info();
        let selector = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => Selector::DiscreteGpu(next(0)),
            wgpu::DeviceType::IntegratedGpu => Selector::IntegratedGpu(next(1)),
            wgpu::DeviceType::VirtualGpu => Selector::VirtualGpu(next(2)),
            // Of several on the CPU the first can be had.
            wgpu::DeviceType::Cpu => rasteriser.take()?,
            wgpu::DeviceType::Other => return None,
        };
        let is_software = info.device_type == wgpu::DeviceType::Cpu || is_software(&info.name);
        Some(Adapter {
            name: info.name,
            kind: if is_software {
                DeviceKind::SoftwareGpu
            } else {
                DeviceKind::Gpu
            },
            selector,
            api,
            opened: OnceLock::new(),
        })
    };
    let listed = listed.unwrap_or_default().into_iter();
    listed.filter_map(selected).collect()
}

/// The adapter of that number, or the first whose name contains the text.
pub(super) fn named(asked: &str) -> Result<&'static Adapter, DeviceError> {
    let found = adapters();
    let wanted = asked.to_lowercase();
    let chosen = match asked.parse::<usize>() {
        Ok(number) => found.get(number),
        Err(_) => {
            let mut found = found.iter();
            found.find(|one| one.name.to_lowercase().contains(&wanted))
        }
    };
    chosen.ok_or_else(|| DeviceError::Unknown {
        asked: asked.to_owned(),
        known: list(found),
    })
}

/// Numbers and names, for a message.
fn list(found: &[Adapter]) -> String {
    let numbered = found.iter().enumerate();
    let gpus = numbered.map(|(number, one)| format!("{number} {}", one.name));
    gpus.chain(["cpu".to_owned()])
        .collect::<Vec<_>>()
        .join(", ")
}

/// Whether opening `choice` looks for adapters.
///
/// Looking loads every driver there is, which takes time. On Linux a GPU that can be opened has a file, so a choice
/// that may be the CPU is the CPU where there is none.
#[must_use]
pub fn will_look(choice: &DeviceChoice) -> bool {
    match choice {
        DeviceChoice::Cpu => false,
        DeviceChoice::Auto => may_have_gpu(Path::new(DEVICES)),
        DeviceChoice::Named(_) => true,
    }
}

/// Whether a system with these device files may have a GPU at all.
fn may_have_gpu(devices: &Path) -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    let Ok(files) = std::fs::read_dir(devices) else {
        return true;
    };
    files.flatten().any(|file| {
        let name = file.file_name();
        let name = name.to_string_lossy();
        GPU_FILES.iter().any(|known| name.starts_with(known))
    })
}

/// Whether an adapter of this name is known to compute on the CPU.
fn is_software(name: &str) -> bool {
    let name = name.to_lowercase();
    [
        "llvmpipe",
        "swiftshader",
        "lavapipe",
        "softpipe",
        "basic render",
    ]
    .iter()
    .any(|software| name.contains(software))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_are_looked_for_only_where_a_gpu_has_a_file() {
        let folder = std::env::temp_dir().join(format!("shoal-devices-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("pts")).expect("a folder");
        let without = may_have_gpu(&folder);
        std::fs::create_dir(folder.join("dri")).expect("a folder");
        let with = may_have_gpu(&folder);
        std::fs::remove_dir_all(&folder).expect("it was made above");
        assert_eq!((without, with), (!cfg!(target_os = "linux"), true));
        assert!(
            may_have_gpu(&folder),
            "a folder that cannot be read tells nothing"
        );
    }

    #[test]
    fn an_adapter_that_is_asked_for_twice_is_opened_once() {
        let adapter = adapters().first().expect("a Vulkan driver is installed");
        let opened = [adapter.open(), adapter.open()].map(|one| one.expect("it opens"));
        assert_eq!(opened[0].device, opened[1].device);
        assert_eq!(opened[0].name, adapter.name);
    }
}
