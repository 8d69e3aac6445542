//! What this browser says about WebGPU, before anything is computed with it.

use js_sys::Promise;
use shared::model::device::{self, DeviceChoice, DeviceError, Opened};
use shared::units::Span;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;

use super::clock::within;
use super::port::scope;
use crate::js::{call, get, object};
use crate::messages::{DeviceWish, NoWebGpu, WebGpu};

/// How long a browser may take to name an adapter.
const ANSWER_MAX: Span = Span::from_secs(10);
/// Names of adapters that compute on the CPU.
const SOFTWARE: [&str; 4] = ["swiftshader", "llvmpipe", "lavapipe", "basic render"];

/// Asks the browser for an adapter, and what it is.
pub(super) async fn ask() -> WebGpu {
    let absent = |reason| WebGpu::Absent { reason };
    let navigator = get(&scope(), "navigator");
    let api = get(&navigator, "gpu");
    if api.is_undefined() || api.is_null() {
        let secure = get(&scope(), "isSecureContext").is_truthy();
        return absent(if secure {
            NoWebGpu::NotOffered
        } else {
            NoWebGpu::NeedsHttps
        });
    }
    let wish = object(&[("powerPreference", JsValue::from_str("high-performance"))]);
    let Ok(asked) = call(&api, "requestAdapter", &[wish.into()]) else {
        return absent(NoWebGpu::NoAdapter);
    };
    // A browser whose GPU process does not come up never answers.
    let adapter = within(
        ANSWER_MAX,
        JsFuture::from(asked.unchecked_into::<Promise>()),
    );
    let adapter = match adapter.await {
        Some(Ok(adapter)) if !adapter.is_null() && !adapter.is_undefined() => adapter,
        Some(Ok(_) | Err(_)) | None => return absent(NoWebGpu::NoAdapter),
    };
    let features = get(&adapter, "features");
    let has = |feature| {
        call(&features, "has", &[JsValue::from_str(feature)]).is_ok_and(|has| has.is_truthy())
    };
    // Without it cubecl measures by the clock, which in a browser it cannot: it panics when it opens its first stream.
    if !has("timestamp-query") {
        return absent(NoWebGpu::NoTimestamps);
    }
    let info = get(&adapter, "info");
    let words: Vec<String> = ["description", "vendor", "architecture", "device"]
        .iter()
        .filter_map(|name| get(&info, name).as_string())
        .filter(|word| !word.is_empty())
        .collect();
    let name = if words.is_empty() {
        "an adapter without a name".to_owned()
    } else {
        words.join(" ")
    };
    let fallback = get(&info, "isFallbackAdapter").is_truthy()
        || get(&adapter, "isFallbackAdapter").is_truthy();
    let known = name.to_lowercase();
    let limits = get(&adapter, "limits");
    let bytes = get(&limits, "maxStorageBufferBindingSize").as_f64();
    WebGpu::Adapter {
        software: fallback || SOFTWARE.iter().any(|word| known.contains(word)),
        name,
        shader_f16: has("shader-f16"),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a size in bytes, far below 2^53"
        )]
        buffer_bytes_max: bytes.unwrap_or_default() as u64,
    }
}

/// The same, unless nobody wants to know.
pub(super) async fn ask_if_wanted(wish: DeviceWish) -> WebGpu {
    match wish {
        DeviceWish::Auto | DeviceWish::WebGpu => ask().await,
        DeviceWish::Cpu => WebGpu::Absent {
            reason: NoWebGpu::NotOffered,
        },
    }
}

/// Opens the device that a person wishes, given what the browser said.
///
/// # Errors
/// WebGPU was asked for by name and there is none that can be used.
pub(super) async fn open(wish: DeviceWish, webgpu: &WebGpu) -> Result<Opened, DeviceError> {
    let gpu = || DeviceChoice::Named("WebGPU".to_owned());
    let choice = match (wish, webgpu) {
        (
            DeviceWish::WebGpu,
            WebGpu::Absent {
                reason: NoWebGpu::NoTimestamps,
            },
        ) => {
            return Err(DeviceError::NoWebGpu {
                reason: "it has no timestamp queries".to_owned(),
            });
        }
        (DeviceWish::WebGpu, _) => gpu(),
        (
            DeviceWish::Auto,
            WebGpu::Adapter {
                software: false, ..
            },
        ) => gpu(),
        (DeviceWish::Auto | DeviceWish::Cpu, _) => DeviceChoice::Cpu,
    };
    let opened = device::open(&choice).await;
    match (opened, wish) {
        // It said that it has one, and then gave none: the CPU will do.
        (Err(_), DeviceWish::Auto) => device::open(&DeviceChoice::Cpu).await,
        (opened, _) => opened,
    }
}

/// What an opened device is called here.
pub(super) fn words(opened: &Opened, webgpu: &WebGpu) -> String {
    use shared::model::device::DeviceKind;
    match (opened.kind, webgpu) {
        (DeviceKind::Cpu, _) => "CPU (WebAssembly, SIMD)".to_owned(),
        (DeviceKind::Gpu | DeviceKind::SoftwareGpu, WebGpu::Adapter { name, .. }) => {
            format!("WebGPU ({name})")
        }
        (DeviceKind::Gpu | DeviceKind::SoftwareGpu, WebGpu::Absent { .. }) => "WebGPU".to_owned(),
    }
}
