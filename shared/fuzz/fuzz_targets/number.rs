//! Number formats: any bytes are refused, or numbers of the right count that int8 and int4 keep finite.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shared::config::model::NumberFormat;
use shared::wire::number::{Rounding, pack, payload_bytes, unpack};

fuzz_target!(|data: &[u8]| {
    let [choice, width, rest @ ..] = data else {
        return;
    };
    let format = match choice % 4 {
        0 => NumberFormat::F32,
        1 => NumberFormat::F16,
        2 => NumberFormat::Int8,
        _ => NumberFormat::Int4,
    };
    let width = usize::from(*width).max(1);
    let rows = rest.len() / payload_bytes(format, 1, width);
    let bytes = &rest[..payload_bytes(format, rows, width)];
    assert!(rest.len() == bytes.len() || unpack(format, rest, rows, width).is_err());
    let Ok(values) = unpack(format, bytes, rows, width) else {
        return;
    };
    assert_eq!(values.len(), rows * width);
    if matches!(format, NumberFormat::Int8 | NumberFormat::Int4) {
        assert!(values.iter().all(|value| value.is_finite()));
    }
    let packed = pack(format, &values, width, Rounding::Nearest);
    assert_eq!(packed.len(), bytes.len());
    assert!(
        values.iter().any(|value| !value.is_finite())
            || unpack(format, &packed, rows, width).is_ok()
    );
});
