//! Which processor computes: a hardware GPU through wgpu, or the CPU through burn's flex.
//!
//! The only module that names a GPU API. A software adapter (llvmpipe, SwiftShader) is far slower
//! than flex on the same CPU, so it is used only when somebody asks for it by name: tests do,
//! to run the GPU's path where there is no GPU.
//!
//! Begin with [`open`]. Natively [`adapters`] lists what there is, and [`Opened::try_memory`] finds out how much
//! memory a GPU gives; a browser shows a page only the adapter that it picked itself.

#[cfg(not(target_arch = "wasm32"))]
mod adapters;
#[cfg(not(target_arch = "wasm32"))]
mod trial;

#[cfg(not(target_arch = "wasm32"))]
pub use self::adapters::{Adapter, adapters, will_look};
#[cfg(not(target_arch = "wasm32"))]
pub use self::trial::Trial;
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
    /// Its handles, where it is a GPU that says when it has no memory left.
    #[cfg(not(target_arch = "wasm32"))]
    gpu: Option<trial::Handles>,
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
    /// The adapter is there and gives no device.
    #[error("{name} cannot be opened: {reason}")]
    Closed {
        /// The adapter.
        name: String,
        /// What its driver said.
        reason: String,
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
        #[cfg(not(target_arch = "wasm32"))]
        gpu: None,
    }
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
        DeviceChoice::Auto if will_look(choice) => {
            let mut found = adapters().iter();
            let hardware = found.find(|one| one.kind == DeviceKind::Gpu);
            hardware.map_or_else(|| Ok(cpu()), Adapter::open)
        }
        DeviceChoice::Cpu | DeviceChoice::Auto => Ok(cpu()),
        DeviceChoice::Named(asked) => adapters::named(asked)?.open(),
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
    fn an_unknown_device_is_refused_with_a_list_of_those_there_are() {
        let error = open_now("abacus")
            .expect_err("nobody makes these")
            .to_string();
        assert!(error.contains("abacus") && error.contains("cpu"), "{error}");
    }
}
