//! Names and orders: ours on one side, Llama's on the other.
//!
//! Ours: matrices `[in, out]`, rotary pairs are neighbours `(2i, 2i + 1)` within a head.
//! Llama's: matrices `[out, in]`, rotary pairs are `(i, i + width / 2)`.

use std::collections::BTreeMap;

use shared::config::model::{ModelConfig, Parameter};

/// What lies between our tensor and Llama's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Equal.
    Same,
    /// Rows and columns change places.
    Transposed,
    /// Also, the outputs of each head of this width are told apart by halves instead of by pairs.
    TransposedHeads(usize),
}

/// Llama's name of our parameter, and how it is laid out.
fn place(config: &ModelConfig, name: &str) -> (String, Order) {
    let heads = Order::TransposedHeads(config.d_model / config.heads);
    let (block, part) = match name {
        "embed" => return ("model.embed_tokens.weight".to_owned(), Order::Same),
        "norm_final" => return ("model.norm.weight".to_owned(), Order::Same),
        "head" => return ("lm_head.weight".to_owned(), Order::Transposed),
        name => name
            .strip_prefix("block.")
            .and_then(|rest| rest.split_once('.'))
            .expect("all other parameters belong to a block"),
    };
    let (theirs, order) = match part {
        "query" => ("self_attn.q_proj", heads),
        "key" => ("self_attn.k_proj", heads),
        "value" => ("self_attn.v_proj", Order::Transposed),
        "attention_out" => ("self_attn.o_proj", Order::Transposed),
        "gate" => ("mlp.gate_proj", Order::Transposed),
        "up" => ("mlp.up_proj", Order::Transposed),
        "down" => ("mlp.down_proj", Order::Transposed),
        "norm_attention" => ("input_layernorm", Order::Same),
        "norm_mlp" => ("post_attention_layernorm", Order::Same),
        other => unreachable!("a block has no {other}"),
    };
    (format!("model.layers.{block}.{theirs}.weight"), order)
}

/// Which of our outputs is Llama's output `row`.
fn output_of(order: Order, row: usize) -> usize {
    match order {
        Order::Same | Order::Transposed => row,
        Order::TransposedHeads(width) => {
            let (head, within) = (row / width, row % width);
            let half = width / 2;
            head * width + 2 * (within % half) + within / half
        }
    }
}

/// All tensors under Llama's names, with their shapes.
pub(super) fn to_llama(
    config: &ModelConfig,
    weights: &BTreeMap<String, Vec<f32>>,
) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let convert = |Parameter { name, shape, .. }: Parameter| {
        let values = &weights[&name];
        let (theirs, order) = place(config, &name);
        if order == Order::Same {
            return (theirs, shape, values.clone());
        }
        let (inputs, outputs) = (shape[0], shape[1]);
        let column = |row: usize| {
            let output = output_of(order, row);
            (0..inputs).map(move |input| values[input * outputs + output])
        };
        let turned = (0..outputs).flat_map(column).collect();
        (theirs, vec![outputs, inputs], turned)
    };
    config.parameters_of(0).into_iter().map(convert).collect()
}

/// All our tensors; `take(name, shape)` gives one of Llama's.
pub(super) fn from_llama(
    config: &ModelConfig,
    take: impl Fn(&str, &[usize]) -> Result<Vec<f32>, String>,
) -> Result<BTreeMap<String, Vec<f32>>, String> {
    let convert = |Parameter { name, shape, .. }: Parameter| {
        let (theirs, order) = place(config, &name);
        if order == Order::Same {
            return Ok((name, take(&theirs, &shape)?));
        }
        let (inputs, outputs) = (shape[0], shape[1]);
        let values = take(&theirs, &[outputs, inputs])?;
        let mut turned = vec![0.0; values.len()];
        for (row, line) in values.chunks_exact(inputs).enumerate() {
            let output = output_of(order, row);
            for (input, value) in line.iter().enumerate() {
                turned[input * outputs + output] = *value;
            }
        }
        Ok((name, turned))
    };
    config.parameters_of(0).into_iter().map(convert).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_a_head_are_its_even_and_odd_outputs() {
        let order = Order::TransposedHeads(6);
        let first: Vec<usize> = (0..6).map(|row| output_of(order, row)).collect();
        assert_eq!(first, [0, 2, 4, 1, 3, 5]);
        assert_eq!(output_of(order, 6), 6);
        assert_eq!(output_of(order, 9), 7);
    }
}
