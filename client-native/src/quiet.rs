//! Keeps a graphics driver's layer from complaining about a display that nobody asked for.
//!
//! Mesa's Vulkan layer `VK_LAYER_MESA_device_select` asks a Wayland server which GPU the desktop uses, whenever
//! adapters are listed. Where there is no desktop, libwayland writes an error to the terminal each time. The layer is
//! left out by a variable that the Vulkan loader reads; a process cannot change its own variables safely, so it is
//! started anew with that one, as the same process.

/// What the layer's manifest says to set to leave it out.
#[cfg(target_os = "linux")]
const LEAVE_OUT: &str = "NODEVICE_SELECT";
/// Where a desktop session keeps its sockets. Without it libwayland complains.
#[cfg(target_os = "linux")]
const SESSION: &str = "XDG_RUNTIME_DIR";

/// Starts this process anew without the layer, where it would complain. To be called before anything else is begun.
///
/// Comes back where there is nothing to do, or if the system refuses: then there is noise, and nothing worse.
#[cfg(target_os = "linux")]
pub fn leave_out_display_layer() {
    use std::os::unix::process::CommandExt as _;
    if std::env::var_os(SESSION).is_some() || std::env::var_os(LEAVE_OUT).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else {
        return;
    };
    let mut arguments = std::env::args_os();
    let mut command = std::process::Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // Returns only where it failed.
    let failed = command.args(arguments).env(LEAVE_OUT, "1").exec();
    tracing::debug!(%failed, "not started anew");
}

/// Other systems have no such layer.
#[cfg(not(target_os = "linux"))]
pub fn leave_out_display_layer() {}
