//! The dependency graph, as `cargo metadata` has it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;
use twice_tests::workspace_root;

use crate::licence::is_permissive;

/// Two versions of one of these would pass each other's types by, or bring two copies of a TLS stack.
const ONE_VERSION: &[&str] = &["arrow", "parquet", "object_store", "datafusion", "rustls"];

/// Packages whose licence is not permissive, or not stated, with the reason why they are used all the same.
const LICENCE_EXCEPTIONS: &[(&str, &str)] = &[(
    "option-ext",
    "MPL-2.0, which binds its own files alone; unchanged, and part of the fluvio client (by dirs)",
)];

/// Which of our crates each crate may use; everything else in the workspace is off limits to it.
const MAY_USE: &[(&str, &[&str])] = &[
    ("twice-log", &[]),
    ("twice-store", &["twice-log"]),
    ("twice-actors", &["twice-log", "twice-store"]),
    ("twice-reconciler", &["twice-log", "twice-store"]),
    ("twice-api", &["twice-log", "twice-store"]),
    ("twice", &["twice-log", "twice-store", "twice-actors", "twice-reconciler", "twice-api"]),
    ("twice-loadgen", &["twice-log"]),
    ("twice-tests", &["twice-log"]),
];

fn packages() -> Vec<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(workspace_root())
        .args(["metadata", "--format-version", "1"])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    metadata["packages"].as_array().cloned().expect("packages")
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or("")
}

#[test]
fn there_is_one_version_of_what_must_be_one() {
    let mut versions: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        // The parts of arrow and DataFusion are released together with them and must not be mixed either.
        let name = text(&package, "name");
        let of = |one: &&&str| {
            name == **one || (["arrow", "datafusion"].contains(one) && name.starts_with(&format!("{one}-")))
        };
        if let Some(one) = ONE_VERSION.iter().find(of) {
            versions.entry(one).or_default().insert(text(&package, "version").to_owned());
        }
    }
    for name in ["arrow", "parquet", "object_store", "datafusion"] {
        assert!(
            versions.contains_key(name),
            "{name} is not in the graph: does this test still look at the right names?"
        );
    }
    let several: Vec<_> = versions.iter().filter(|(_, versions)| versions.len() > 1).collect();
    assert!(several.is_empty(), "more than one version: {several:?}");
}

#[test]
fn every_licence_is_permissive() {
    let mut refused = Vec::new();
    for package in packages() {
        let (name, licence) = (text(&package, "name"), text(&package, "license"));
        let excepted = LICENCE_EXCEPTIONS.iter().any(|(exception, _)| *exception == name);
        if !is_permissive(licence) && !excepted {
            refused.push(format!("{name} {}: {licence:?}", text(&package, "version")));
        }
    }
    assert!(refused.is_empty(), "not permissive: {refused:#?}");
}

#[test]
fn our_crates_depend_on_each_other_one_way_only() {
    let packages = packages();
    let ours: Vec<&Value> = packages.iter().filter(|package| package["source"].is_null()).collect();
    let names: BTreeSet<&str> = ours.iter().map(|package| text(package, "name")).collect();
    let listed: BTreeSet<&str> = MAY_USE.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, listed, "every crate of the workspace is listed with what it may use");
    for package in ours {
        let name = text(package, "name");
        let may_use = MAY_USE.iter().find(|(listed, _)| *listed == name).map_or(&[][..], |(_, uses)| *uses);
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let used = text(dependency, "name");
            assert!(!names.contains(used) || may_use.contains(&used), "{name} must not depend on {used}");
        }
    }
}

#[test]
fn every_crate_takes_the_workspaces_lints_and_is_not_published() {
    let packages = packages();
    for package in packages.iter().filter(|package| package["source"].is_null()) {
        let manifest = std::fs::read_to_string(text(package, "manifest_path")).expect("manifest");
        let name = text(package, "name");
        assert!(manifest.contains("[lints]\nworkspace = true"), "{name} does not take the workspace's lints");
        assert_eq!(package["publish"], serde_json::json!([]), "{name} could be published by accident");
        assert_eq!(text(package, "license"), "Apache-2.0", "{name}");
    }
}
