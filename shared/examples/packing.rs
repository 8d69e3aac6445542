//! How fast borders are packed and unpacked on one core: a line of JSON for each format and way of rounding.
//!
//! `cargo xtask figures packing` runs it, natively and in a browser, which gives it a clock and takes the lines. Bytes are those of the unpacked numbers, f32; the memory for the result is asked of the
//! system each time, as a seat does. All kinds are measured in turns, so that a busy machine disturbs all alike.

use std::hint::black_box;

use serde_json::json;
use shared::config::model::NumberFormat;
use shared::random::Words;
use shared::wire::number::{Direction, Noise, Rounding, pack, unpack};

const FORMATS: [NumberFormat; 4] = [
    NumberFormat::F32,
    NumberFormat::F16,
    NumberFormat::Int8,
    NumberFormat::Int4,
];
/// As wide as the preset `base`, and small enough that memory for it is there already.
const ROWS: usize = 128;
const WIDTH: usize = 768;
const REPEATS: usize = 31;
/// What is timed at once: a browser's clock shows 0.1 ms.
const PASSES: usize = 8;

fn main() {
    let mut words = Words::new("packing", &[1]);
    // Sums of uniforms: nearly normal numbers.
    let mut value = || {
        let sum: f64 = (0..12)
            .map(|_| f64::from(words.next_word()) / 4_294_967_296.0)
            .sum();
        sum - 6.0
    };
    #[expect(clippy::cast_possible_truncation, reason = "random f32 values")]
    let values: Vec<f32> = (0..ROWS * WIDTH).map(|_| value() as f32).collect();
    let stochastic = Rounding::Stochastic(Noise {
        run_seed: 1,
        round: 1,
        first_sample: 1,
        border: 1,
        direction: Direction::Backward,
    });
    let kinds = FORMATS
        .into_iter()
        .flat_map(|format| [(format, Rounding::Nearest), (format, stochastic)]);
    let kinds: Vec<(NumberFormat, Rounding)> = kinds.collect();
    let mut rates = vec![(Vec::new(), Vec::new()); kinds.len()];
    for _ in 0..REPEATS {
        for ((format, rounding), (packing, unpacking)) in kinds.iter().zip(&mut rates) {
            let pack = || pack(*format, black_box(&values), WIDTH, *rounding);
            packing.push(rate(|| drop(black_box(pack()))));
            let bytes = pack();
            let unpack = || unpack(*format, black_box(&bytes), ROWS, WIDTH).expect("own bytes");
            unpacking.push(rate(|| drop(black_box(unpack()))));
        }
    }
    for ((format, rounding), (packing, unpacking)) in kinds.iter().zip(rates) {
        let line = json!({
            "format": format,
            "stochastic": matches!(rounding, Rounding::Stochastic(_)),
            "pack_gb_per_second": median(packing),
            "unpack_gb_per_second": median(unpacking),
        });
        outside::say(&line.to_string());
    }
}

/// Gigabytes of f32 a second.
fn rate(pass: impl Fn()) -> f64 {
    let began = outside::seconds();
    (0..PASSES).for_each(|_| pass());
    let took = outside::seconds() - began;
    (PASSES * 4 * ROWS * WIDTH) as f64 / took / 1e9
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(not(target_arch = "wasm32"))]
mod outside {
    use std::sync::LazyLock;
    use std::time::Instant;

    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

    pub(super) fn seconds() -> f64 {
        BEGAN.elapsed().as_secs_f64()
    }

    #[expect(clippy::print_stdout, reason = "its output is what it is for")]
    pub(super) fn say(line: &str) {
        println!("{line}");
    }
}

#[cfg(target_arch = "wasm32")]
mod outside {
    #![expect(unsafe_code, reason = "the page gives the functions")]

    mod page {
        #[link(wasm_import_module = "page")]
        unsafe extern "C" {
            pub(super) safe fn now_ms() -> f64;
            /// Text in UTF-8 at an address of the module's memory.
            pub(super) safe fn say(text: *const u8, bytes: usize);
        }
    }

    pub(super) fn seconds() -> f64 {
        page::now_ms() / 1e3
    }

    pub(super) fn say(line: &str) {
        page::say(line.as_ptr(), line.len());
    }
}
