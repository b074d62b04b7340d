//! Licence expressions (SPDX): whether one can be met with permissive licences alone.

/// Licences that ask for attribution at most.
const PERMISSIVE: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0", // Boost; not to be taken for the Business Source License, which is BUSL
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Additions to a licence that only permit more.
const PERMISSIVE_EXCEPTIONS: &[&str] = &["LLVM-exception"];

/// Returns whether `expression` offers at least one alternative of permissive licences alone.
///
/// An expression that does not read is not permissive. The old form `MIT/Apache-2.0` means `OR`.
pub fn is_permissive(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut reader = Reader { words: &words };
    let permissive = reader.alternatives();
    reader.words.is_empty() && permissive == Some(true)
}

struct Reader<'a> {
    words: &'a [&'a str],
}

impl Reader<'_> {
    fn take(&mut self, word: &str) -> bool {
        let found = self.words.first() == Some(&word);
        if found {
            self.words = &self.words[1..];
        }
        found
    }

    fn alternatives(&mut self) -> Option<bool> {
        let mut any = self.conjunction()?;
        while self.take("OR") {
            any |= self.conjunction()?;
        }
        Some(any)
    }

    fn conjunction(&mut self) -> Option<bool> {
        let mut all = self.licence()?;
        while self.take("AND") {
            all &= self.licence()?;
        }
        Some(all)
    }

    fn licence(&mut self) -> Option<bool> {
        if self.take("(") {
            let inner = self.alternatives()?;
            return self.take(")").then_some(inner);
        }
        let (name, rest) = self.words.split_first()?;
        self.words = rest;
        let mut permissive = PERMISSIVE.contains(name);
        if self.take("WITH") {
            let (exception, rest) = self.words.split_first()?;
            self.words = rest;
            permissive &= PERMISSIVE_EXCEPTIONS.contains(exception);
        }
        Some(permissive)
    }
}

#[test]
fn one_permissive_alternative_is_enough_and_every_part_of_it_counts() {
    for permissive in [
        "MIT",
        "MIT/Apache-2.0",
        "Apache-2.0 WITH LLVM-exception OR GPL-3.0-only",
        "GPL-3.0-or-later OR MIT",
        "(MIT OR GPL-2.0-only) AND Unicode-3.0",
        "MIT AND (Apache-2.0 OR BUSL-1.1)",
    ] {
        assert!(is_permissive(permissive), "{permissive}");
    }
    for other in [
        "GPL-3.0-or-later",
        "BUSL-1.1",
        "MIT AND GPL-2.0-only",
        "(MIT OR Apache-2.0) AND AGPL-3.0-only",
        "Apache-2.0 WITH Commons-Clause",
        "",
        "MIT OR",
        "(MIT",
        "MIT Apache-2.0",
    ] {
        assert!(!is_permissive(other), "{other}");
    }
}
