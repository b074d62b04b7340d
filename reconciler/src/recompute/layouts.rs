//! Data files of every layout in one scan: columns that came later are filled in, file by file.
//!
//! Guarantee: what the archive's own reader says of a file, the engine says too (`twice_log::archive::Layout`). Without
//! this the engine would take a missing column that may be null for nulls, and a click without a watermark is never late.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::physical_expr_adapter::{
    DefaultPhysicalExprAdapterFactory, PhysicalExprAdapter, PhysicalExprAdapterFactory,
    replace_columns_with_literals,
};
use datafusion::physical_plan::PhysicalExpr;
use twice_log::archive::{Absent, Layout};

/// Adapts expressions over the newest layout to the columns that a file has.
#[derive(Debug)]
pub struct FileLayouts(pub Layout);

impl PhysicalExprAdapterFactory for FileLayouts {
    fn create(&self, newest: SchemaRef, found: SchemaRef) -> Result<Arc<dyn PhysicalExprAdapter>> {
        let mut defaults = HashMap::new();
        for field in newest.fields().iter().filter(|field| found.field_with_name(field.name()).is_err()) {
            let name = field.name();
            match self.0.absent(name) {
                Absent::Null => {} // as the engine does by itself
                Absent::EmptyText => {
                    let empty = ScalarValue::Utf8View(Some(String::new()));
                    defaults.insert(name.clone(), empty.cast_to(field.data_type())?);
                }
                Absent::Damage => {
                    return exec_err!("a data file has no column {name}, which files of every version have");
                }
            }
        }
        let rest = DefaultPhysicalExprAdapterFactory.create(newest, found)?;
        Ok(Arc::new(FileLayout { defaults, rest }))
    }
}

#[derive(Debug)]
struct FileLayout {
    defaults: HashMap<String, ScalarValue>,
    rest: Arc<dyn PhysicalExprAdapter>,
}

impl PhysicalExprAdapter for FileLayout {
    fn rewrite(&self, expression: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        self.rest.rewrite(replace_columns_with_literals(expression, &self.defaults)?)
    }
}
