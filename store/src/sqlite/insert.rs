//! Many rows in few statements: a round trip to SQLite's thread costs more than a row.

use sqlx::query_builder::Separated;
use sqlx::{QueryBuilder, Sqlite, Transaction};

use super::database;
use crate::error::Result;

/// Rows a statement. SQLite allows 32 766 values a statement; no table here has more than 20 columns.
const ROWS_PER_STATEMENT: usize = 500;

/// Runs `{head} VALUES (…), (…) {tail}` over all rows; `push` binds the columns of one.
pub(super) async fn insert_rows<T>(
    transaction: &mut Transaction<'_, Sqlite>,
    action: &'static str,
    (head, tail): (&'static str, &'static str),
    rows: &[T],
    push: impl Fn(&mut Separated<'_, Sqlite, &'static str>, &T),
) -> Result<()> {
    for chunk in rows.chunks(ROWS_PER_STATEMENT) {
        let mut builder = QueryBuilder::<Sqlite>::new(head);
        builder.push_values(chunk, |mut columns, row| push(&mut columns, row));
        builder.push(tail);
        // Whole chunks share one prepared statement; the rest's is worth no place in the cache.
        let query = builder.build().persistent(chunk.len() == ROWS_PER_STATEMENT);
        query.execute(&mut **transaction).await.map_err(database(action))?;
    }
    Ok(())
}
