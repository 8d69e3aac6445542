//! Which processor computes: a hardware GPU through wgpu, or the CPU through burn's flex.
//!
//! The only module that names a GPU API. A software adapter (llvmpipe, SwiftShader) is far slower
//! than flex on the same CPU, so it is used only when somebody asks for it by name: tests do,
//! to run the GPU's path where there is no GPU.
//!
//! Begin with [`open`]. Natively [`adapters`] lists what there is; a browser shows a page only the
//! adapter that it picked itself.

use burn::tensor::Device;

/// What a person asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A hardware GPU, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The adapter of that number in [`adapters`], or the first whose name contains the text.
    Named(String),
}

/// A device that is ready for work.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The device.
    pub device: Device,
    /// What it calls itself.
    pub name: String,
    /// What kind of processor it is.
    pub kind: DeviceKind,
}

/// What kind of processor a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Hardware, through wgpu.
    Gpu,
    /// A GPU's interface, computed by the CPU.
    SoftwareGpu,
    /// The CPU itself, through flex.
    Cpu,
}

/// Why no device was opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No adapter of that number or name.
    #[error("no device is called {asked:?}; there are: {known}")]
    Unknown {
        /// What was asked for.
        asked: String,
        /// What there is, with numbers.
        known: String,
    },
    /// The browser gave no WebGPU device.
    #[error("this browser gave no WebGPU device: {reason}")]
    NoWebGpu {
        /// What it said.
        reason: String,
    },
}

impl std::str::FromStr for DeviceChoice {
    type Err = std::convert::Infallible;

    /// `auto`, `cpu`, a number or a name.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "cpu" => Self::Cpu,
            name => Self::Named(name.to_owned()),
        })
    }
}

/// The CPU.
#[must_use]
pub fn cpu() -> Opened {
    Opened {
        device: Device::flex(),
        name: "CPU (flex)".to_owned(),
        kind: DeviceKind::Cpu,
    }
}

/// Every adapter that wgpu finds, hardware or not, in the order of their numbers.
///
/// Opens each of them to learn its name: call it once.
#[cfg(not(target_arch = "wasm32"))]
#[must_use]
pub fn adapters() -> Vec<Opened> {
    use burn::tensor::DeviceType;
    let devices = Device::enumerate(DeviceType::Wgpu).into_vec().into_iter();
    let opened = devices.filter_map(|device| {
        let identity = device.identity()?;
        // A card sits on a bus; a rasteriser on the CPU sits nowhere.
        let hardware = identity.physical.is_some() && !is_software(&identity.name);
        let kind = if hardware {
            DeviceKind::Gpu
        } else {
            DeviceKind::SoftwareGpu
        };
        Some(Opened {
            device,
            name: identity.name,
            kind,
        })
    });
    opened.collect()
}

/// Where Linux shows its devices.
#[cfg(not(target_arch = "wasm32"))]
const DEVICES: &str = "/dev";

/// Beginnings of the names that Linux gives to what a GPU's driver opens; `dri` is a folder of them.
#[cfg(not(target_arch = "wasm32"))]
const GPU_FILES: [&str; 6] = ["dri", "nvidia", "dxg", "kfd", "kgsl", "mali"];

/// Whether this system may have a GPU at all.
///
/// Looking for adapters loads every graphics library there is, which takes time and lets some of them complain on
/// standard error about displays that a server does not have. On Linux a GPU that can be opened has a file.
#[cfg(not(target_arch = "wasm32"))]
fn may_have_gpu(devices: &std::path::Path) -> bool {
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
#[cfg(not(target_arch = "wasm32"))]
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

/// Opens what was asked for.
///
/// # Errors
/// If there is no such device; the text lists those that there are.
#[cfg(not(target_arch = "wasm32"))]
#[expect(
    clippy::unused_async,
    reason = "a browser waits here; both sides call it alike"
)]
pub async fn open(choice: &DeviceChoice) -> Result<Opened, DeviceError> {
    match choice {
        DeviceChoice::Cpu => Ok(cpu()),
        DeviceChoice::Auto if !may_have_gpu(std::path::Path::new(DEVICES)) => Ok(cpu()),
        DeviceChoice::Auto => {
            let hardware = adapters()
                .into_iter()
                .find(|found| found.kind == DeviceKind::Gpu);
            Ok(hardware.unwrap_or_else(cpu))
        }
        DeviceChoice::Named(asked) => {
            let found = adapters();
            let number = asked.parse::<usize>().ok();
            let matches = |(index, opened): &(usize, &Opened)| match number {
                Some(number) => *index == number,
                None => opened.name.to_lowercase().contains(&asked.to_lowercase()),
            };
            let chosen = found
                .iter()
                .enumerate()
                .find(matches)
                .map(|(_, opened)| opened.clone());
            chosen.ok_or_else(|| DeviceError::Unknown {
                asked: asked.clone(),
                known: list(&found),
            })
        }
    }
}

/// Opens what was asked for; a name is not looked at, as a browser offers a single adapter.
///
/// # Errors
/// If WebGPU was asked for by name and there is none.
#[cfg(target_arch = "wasm32")]
pub async fn open(choice: &DeviceChoice) -> Result<Opened, DeviceError> {
    let gpu = |device| Opened {
        device,
        name: "WebGPU".to_owned(),
        kind: DeviceKind::Gpu,
    };
    match choice {
        DeviceChoice::Cpu => Ok(cpu()),
        DeviceChoice::Auto => Ok(Device::wgpu_options()
            .init_async()
            .await
            .map_or_else(|_| cpu(), gpu)),
        DeviceChoice::Named(_) => match Device::wgpu_options().init_async().await {
            Ok(device) => Ok(gpu(device)),
            Err(error) => Err(DeviceError::NoWebGpu {
                reason: error.to_string(),
            }),
        },
    }
}

/// Numbers and names, for a message.
#[cfg(not(target_arch = "wasm32"))]
fn list(found: &[Opened]) -> String {
    let gpus = found
        .iter()
        .enumerate()
        .map(|(index, opened)| format!("{index} {}", opened.name));
    gpus.chain(["cpu".to_owned()])
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_now(choice: &str) -> Result<Opened, DeviceError> {
        let choice = choice.parse().expect("any text is a choice");
        pollster::block_on(open(&choice))
    }

    #[test]
    fn a_software_adapter_is_never_chosen_by_itself() {
        assert_ne!(
            open_now("auto").expect("there is always a CPU").kind,
            DeviceKind::SoftwareGpu
        );
    }

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
    fn an_unknown_device_is_refused_with_a_list_of_those_there_are() {
        let error = open_now("abacus")
            .expect_err("nobody makes these")
            .to_string();
        assert!(error.contains("abacus") && error.contains("cpu"), "{error}");
    }
}
