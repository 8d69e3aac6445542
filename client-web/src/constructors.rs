//! What crates register before `main`: tables of kernels and their operations.
//!
//! Where nothing in a module runs its constructors, the linker takes it for a program that is called once and ends, and
//! has **every** function that JavaScript calls run them first: half of the worker's time went there.

#![expect(unsafe_code, reason = "the linker makes the function")]

unsafe extern "C" {
    fn __wasm_call_ctors();
}

/// Runs them: the first thing that `main` does, once.
pub fn run() {
    // SAFETY: it takes and gives nothing, and `main`, before all else, is where it may be called.
    unsafe { __wasm_call_ctors() }
}
