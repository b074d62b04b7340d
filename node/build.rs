//! Counts the lines of each path's code when the program is built, for `twice compare`.

#![allow(clippy::print_stdout)] // how a build script answers

#[path = "build/count.rs"]
mod count;

use std::path::Path;

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    println!("cargo:rerun-if-changed=build");
    for place in &count::PLACES {
        let mut lines = 0;
        for folder in place.folders {
            println!("cargo:rerun-if-changed=../{folder}");
            lines += count::lines_below(&root.join(folder), &place.without.map(|folder| root.join(folder)))?;
        }
        println!("cargo:rustc-env={}={lines}", place.variable);
    }
    Ok(())
}
