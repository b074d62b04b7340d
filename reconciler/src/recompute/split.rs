//! The function that splits one campaign's clicks over slices, by a hash of `click_id`.
//!
//! Guarantee: all copies of an identity fall into the same part, so parts can be counted apart and summed.

use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array};
use arrow::datatypes::DataType;
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};

/// Returns the condition that keeps part `index` of `parts` of the ids in `click_id`.
pub fn in_part(click_id: Expr, index: u32, parts: u32) -> Expr {
    let function = ScalarUDF::from(PartOf::new(parts));
    function.call(vec![click_id]).eq(lit(i64::from(index)))
}

/// `part_of(click_id)`: the part, 0 to `parts - 1`, of a 16-byte id.
#[derive(Debug, PartialEq, Eq, Hash)]
struct PartOf {
    parts: u32,
    signature: Signature,
}

impl PartOf {
    fn new(parts: u32) -> Self {
        let signature = Signature::exact(vec![DataType::FixedSizeBinary(16)], Volatility::Immutable);
        Self { parts: parts.max(1), signature }
    }
}

impl ScalarUDFImpl for PartOf {
    fn name(&self) -> &str {
        "part_of"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&arguments.args)?;
        let Some(ids) = arrays.first().and_then(|array| array.as_fixed_size_binary_opt()) else {
            return exec_err!("part_of takes one column of 16-byte ids");
        };
        let part = |bytes: &[u8]| (mix(bytes) % u64::from(self.parts)) as i64; // below 2^32
        let parts: Int64Array =
            (0..ids.len()).map(|row| ids.is_valid(row).then(|| part(ids.value(row)))).collect();
        Ok(ColumnarValue::Array(Arc::new(parts)))
    }
}

/// Mixes all bytes of an id: ids are minted by clients, so no part of them is random by itself.
fn mix(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0x9e37_79b9_7f4a_7c15, |state, chunk| {
        let mut word = [0_u8; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        let mut value = (state ^ u64::from_le_bytes(word)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value ^= value >> 29;
        value = value.wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_counted_up_ids_are_about_equal() {
        let mut counts = [0_u32; 7];
        for number in 0..70_000_u128 {
            counts[(mix(&number.to_be_bytes()) % 7) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_000..11_000).contains(count)), "{counts:?}");
    }
}
