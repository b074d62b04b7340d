//! The aggregate function `user_sketch(text)`: the users of a group as a sketch, in the encoding of the store.
//!
//! The sketch is a function of the set of users alone, so neither threads nor slices change a byte of it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, LargeBinaryBuilder};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, exec_datafusion_err, not_impl_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
};
use twice_store::UserSketch;

/// Returns the function, to be registered in a session.
pub fn user_sketch() -> AggregateUDF {
    AggregateUDF::from(UserSketchFunction {
        signature: Signature::uniform(1, vec![DataType::Utf8View], Volatility::Immutable),
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct UserSketchFunction {
    signature: Signature,
}

impl AggregateUDFImpl for UserSketchFunction {
    fn name(&self) -> &str {
        "user_sketch"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::LargeBinary)
    }

    fn state_fields(&self, arguments: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let name = format!("{}[users]", arguments.name);
        Ok(vec![Arc::new(Field::new(name, DataType::LargeBinary, true))])
    }

    fn accumulator(&self, _arguments: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        not_impl_err!("user_sketch without GROUP BY")
    }

    fn groups_accumulator_supported(&self, _arguments: AccumulatorArgs<'_>) -> bool {
        true
    }

    fn create_groups_accumulator(
        &self,
        _arguments: AccumulatorArgs<'_>,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(SketchOfGroups::default()))
    }
}

/// One sketch a group, with the bytes they hold together.
#[derive(Debug, Default)]
struct SketchOfGroups {
    sketches: Vec<UserSketch>,
    heap_bytes: usize,
}

impl SketchOfGroups {
    fn change(&mut self, group: usize, change: impl FnOnce(&mut UserSketch)) {
        let sketch = &mut self.sketches[group];
        let before = sketch.heap_bytes();
        change(sketch);
        self.heap_bytes = self.heap_bytes + sketch.heap_bytes() - before;
    }

    fn emit(&mut self, emit_to: EmitTo) -> ArrayRef {
        let emitted = emit_to.take_needed(&mut self.sketches);
        self.heap_bytes -= emitted.iter().map(UserSketch::heap_bytes).sum::<usize>();
        encode(emitted.iter())
    }
}

impl GroupsAccumulator for SketchOfGroups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        groups_total: usize,
    ) -> Result<()> {
        self.sketches.resize_with(groups_total, UserSketch::default);
        let users = texts(values)?;
        for (row, group) in groups.iter().enumerate() {
            if users.is_valid(row) && is_taken(filter, row) {
                self.change(*group, |sketch| sketch.insert_stored(users.value(row)));
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], groups_total: usize) -> Result<()> {
        self.sketches.resize_with(groups_total, UserSketch::default);
        let states = values.first().and_then(|array| array.as_binary_opt::<i64>());
        let states = states.ok_or_else(|| exec_datafusion_err!("user_sketch merges sketches"))?;
        for (row, group) in groups.iter().enumerate().filter(|(row, _)| states.is_valid(*row)) {
            let other = UserSketch::from_bytes(states.value(row))
                .map_err(|error| exec_datafusion_err!("user_sketch: {error}"))?;
            self.change(*group, |sketch| sketch.merge(&other));
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        Ok(self.emit(emit_to))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.emit(emit_to)])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let users = texts(values)?;
        let sketches: Vec<UserSketch> = (0..users.len())
            .map(|row| {
                let mut sketch = UserSketch::default();
                if users.is_valid(row) && is_taken(filter, row) {
                    sketch.insert_stored(users.value(row));
                }
                sketch
            })
            .collect();
        Ok(vec![encode(sketches.iter())])
    }

    fn size(&self) -> usize {
        self.heap_bytes + self.sketches.capacity() * size_of::<UserSketch>()
    }
}

fn texts(values: &[ArrayRef]) -> Result<&arrow::array::StringViewArray> {
    let texts = values.first().and_then(|array| array.as_string_view_opt());
    texts.ok_or_else(|| exec_datafusion_err!("user_sketch takes one column of text"))
}

fn is_taken(filter: Option<&BooleanArray>, row: usize) -> bool {
    filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row))
}

fn encode<'a>(sketches: impl Iterator<Item = &'a UserSketch>) -> ArrayRef {
    let mut builder = LargeBinaryBuilder::new();
    let mut bytes = Vec::new();
    for sketch in sketches {
        bytes.clear();
        sketch.write_to(&mut bytes);
        builder.append_value(&bytes);
    }
    Arc::new(builder.finish())
}
