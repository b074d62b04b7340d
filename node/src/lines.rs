//! Lines of code of each path, counted when this program was built.

use twice_reconciler::compare::paths::LinesOfCode;

/// Returns the counts.
pub fn lines_of_code() -> LinesOfCode {
    let number = |text: &str| text.parse().unwrap_or(0);
    LinesOfCode {
        stream: number(env!("TWICE_LINES_STREAM")),
        kappa: number(env!("TWICE_LINES_KAPPA")),
        lambda: number(env!("TWICE_LINES_LAMBDA")),
        shared: number(env!("TWICE_LINES_SHARED")),
        source: "lines of Rust and SQL that are neither blank nor comments nor tests, counted when this program was \
                 built. Stream: actors/src without replay. Kappa: actors/src/replay. Lambda: reconciler/src/recompute \
                 and compare, without this comparison. Shared: log/src and store/src. The schedule, the API and the \
                 node serve both and are not counted."
            .to_owned(),
    }
}

#[cfg(test)]
#[path = "../build/count.rs"]
mod count;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::count::{PLACES, lines_below, lines_of};
    use super::lines_of_code;

    #[test]
    fn blank_lines_comments_and_tests_are_no_code() {
        let text = "//! About.\n\nfn a() {\n    // why\n    1\n}\n\n#[cfg(test)]\nmod tests;\n#[cfg(test)]\nmod more {\n    fn b() {}\n    use c;\n}\nfn d() {}\n";
        assert_eq!(lines_of(text, "//"), 4);
        assert_eq!(lines_of("-- about\nSELECT 1\n\nFROM a -- b\n", "--"), 2);
    }

    #[test]
    fn every_place_is_there_and_what_was_built_says_so() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for place in &PLACES {
            assert!(place.variable.starts_with("TWICE_LINES_"));
            for folder in place.folders {
                assert!(root.join(folder).is_dir(), "{folder} is gone: whose lines are counted now?");
                let without = place.without.map(|folder| root.join(folder));
                assert!(lines_below(&root.join(folder), &without).expect("reads") > 100, "{folder}");
            }
        }
        let lines = lines_of_code();
        assert!(lines.stream > 1_000 && lines.lambda > 1_000 && lines.shared > 1_000, "{lines:?}");
    }
}
