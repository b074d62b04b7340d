//! Cursors: the key of a page's last row, with the name of its list, as base64url without padding.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::billing::Page;
use crate::error::{Error, Result};

/// Longest cursor read; any this store gives out is far shorter.
const CURSOR_BYTES_MAX: usize = 512;

/// Returns the cursor of `key` in the list called `list`.
pub(super) fn encode<K: Serialize>(list: &str, key: &K) -> Result<String> {
    let json = serde_json::to_vec(&(list, key))
        .map_err(|error| Error::Damage { what: "cursor".to_owned(), reason: error.to_string() })?;
    Ok(URL_SAFE_NO_PAD.encode(json))
}

/// Reads a cursor of the list called `list`.
///
/// # Errors
/// `Cursor` unless [`encode`] gave it out for this list.
pub(super) fn decode<K: DeserializeOwned>(list: &str, cursor: Option<&str>) -> Result<Option<K>> {
    let Some(cursor) = cursor else { return Ok(None) };
    if cursor.len() > CURSOR_BYTES_MAX {
        return Err(Error::Cursor);
    }
    let json = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| Error::Cursor)?;
    let (name, key): (String, K) = serde_json::from_slice(&json).map_err(|_| Error::Cursor)?;
    if name == list { Ok(Some(key)) } else { Err(Error::Cursor) }
}

/// Returns how many rows to fetch for a page of `limit`: one more than it holds, to know whether another follows.
pub(super) fn fetch_limit(limit: u32) -> (usize, i64) {
    let limit = limit.clamp(1, super::PAGE_ROWS_MAX);
    (limit as usize, i64::from(limit) + 1)
}

/// Cuts what was fetched to a page; `key` names a row.
pub(super) fn page<T, K: Serialize>(
    mut rows: Vec<T>,
    limit: usize,
    list: &str,
    key: impl Fn(&T) -> K,
) -> Result<Page<T>> {
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next_cursor = match rows.last() {
        Some(last) if more => Some(encode(list, &key(last))?),
        _ => None,
    };
    Ok(Page { rows, next_cursor })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_in_its_own_list_alone() {
        let cursor = encode("runs", &7i64).expect("encodes");
        assert_eq!(decode::<i64>("runs", Some(&cursor)).expect("reads"), Some(7));
        assert!(matches!(decode::<i64>("hours", Some(&cursor)), Err(Error::Cursor)));
        assert!(matches!(decode::<String>("runs", Some(&cursor)), Err(Error::Cursor)));
        assert_eq!(decode::<i64>("runs", None).expect("reads"), None);
    }
}
