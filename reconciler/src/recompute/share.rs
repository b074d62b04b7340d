//! Computes a subquery of a statement once where the engine would compute it for every use.
//!
//! DataFusion inlines each `WITH` subquery wherever it is named. The bill names its identities twice, and grouping them is
//! nearly all its work. The statement stays as it is: only the plan made of it is changed, the subquery's answer being
//! put where its uses stood.

use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::dataframe::DataFrame;
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use datafusion::prelude::SessionContext;

/// Returns the plan of `sql` with the subquery called `name` computed and held in memory.
///
/// # Errors
/// Those of planning and running the subquery. A statement without such a subquery is returned as it is.
pub async fn plan_sharing(context: &SessionContext, sql: &str, name: &str) -> Result<LogicalPlan> {
    let plan = context.state().create_logical_plan(sql).await?;
    let Some(subquery) = find(&plan, name)? else { return Ok(plan) };
    let schema = Arc::clone(subquery.schema().inner());
    let partitions = DataFrame::new(context.state(), subquery).collect_partitioned().await?;
    let answer: Arc<dyn TableProvider> = Arc::new(MemTable::try_new(schema, partitions)?);
    let replaced = plan.transform_up(|node| match &node {
        LogicalPlan::SubqueryAlias(alias) if alias.alias.table() == name => {
            let source = provider_as_source(Arc::clone(&answer));
            LogicalPlanBuilder::scan(name, source, None)?.build().map(Transformed::yes)
        }
        _ => Ok(Transformed::no(node)),
    })?;
    Ok(replaced.data)
}

/// Returns whether every use of `name` in a plan means the same, as it does where one subquery has that name.
pub fn means_one(plan: &LogicalPlan, name: &str) -> Result<bool> {
    let Some(first) = find(plan, name)? else { return Ok(true) };
    let mut one = true;
    plan.apply_with_subqueries(|node| match node {
        LogicalPlan::SubqueryAlias(alias) if alias.alias.table() == name => {
            one &= *alias.input == first;
            Ok(TreeNodeRecursion::Continue)
        }
        _ => Ok(TreeNodeRecursion::Continue),
    })?;
    Ok(one)
}

fn find(plan: &LogicalPlan, name: &str) -> Result<Option<LogicalPlan>> {
    let mut found = None;
    plan.apply(|node| match node {
        LogicalPlan::SubqueryAlias(alias) if alias.alias.table() == name => {
            found = Some(alias.input.as_ref().clone());
            Ok(TreeNodeRecursion::Stop)
        }
        _ => Ok(TreeNodeRecursion::Continue),
    })?;
    Ok(found)
}
