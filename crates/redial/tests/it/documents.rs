//! The documents name files that exist.

use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 9] = [
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "docs/contract.md",
    "docs/operations.md",
    "docs/performance.md",
    "docs/proof.md",
    "migrations/README.md",
];

/// Returns the alternatives of `src/{retry,settle}.rs`.
fn expanded(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let (alternatives, after) = rest.split_once('}').expect("a closed brace");
    alternatives.split(',').map(|alternative| format!("{before}{alternative}{after}")).collect()
}

fn is_path(text: &str) -> bool {
    !text.contains([' ', '*', '<', ':', '…', '$'])
        && !text.starts_with('/')
        && (text.ends_with(".rs")
            || text.ends_with(".toml")
            || (text.contains("/src/") && text.ends_with('/')))
}

#[test]
fn every_source_file_that_a_document_names_exists() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (mut missing, mut named) = (Vec::new(), 0);
    for document in DOCUMENTS {
        let text = std::fs::read_to_string(top.join(document)).unwrap();
        for line in text.lines() {
            // A file without a directory stands beside the one named before it.
            let mut directory = PathBuf::new();
            let quoted = line.split('`').skip(1).step_by(2);
            for path in quoted.filter(|text| is_path(text)).flat_map(expanded) {
                let roots = [top.clone(), top.join("crates"), directory.clone(), directory.join("..")];
                let found = roots.iter().map(|root| root.join(&path)).find(|path| path.exists());
                named += 1;
                match found {
                    Some(found) if path.ends_with('/') => directory = found,
                    Some(found) => directory = found.parent().unwrap().to_owned(),
                    None if path == "redial.toml" => {} // an installation's
                    None => missing.push(format!("{document}: {path}")),
                }
            }
        }
    }
    assert!(named > 60, "{named} are recognized");
    assert_eq!(missing, Vec::<String>::new());
}
