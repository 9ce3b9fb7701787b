//! `docs/configuration.md`, made from `defaults.toml`: the comment above a key describes it.

use std::fmt::Write;

use expect_test::expect_file;

use super::source::DEFAULTS;

const INTRODUCTION: &str = "\
# Configuration

<!-- Made from crates/redial/src/settings/defaults.toml: change that, then `UPDATE_EXPECT=1 cargo test -p redial configuration`. -->

Sources in rising precedence: the defaults below; `redial.toml` in the working directory, or `--config FILE`; the
environment, `REDIAL_<SECTION>__<KEY>` (`REDIAL_DELIVERY__TIMEOUT=5s`), where lists are separated by commas and an empty
variable counts as unset. `redial config` prints the effective configuration with secrets masked. An unknown key or a bad
value ends the start with status 2 and the key's name.
";

#[test]
fn the_configuration_document_describes_every_key_with_its_default() {
    let mut document = INTRODUCTION.to_owned();
    let mut description = String::new();
    for line in DEFAULTS.lines() {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            writeln!(document, "\n## {section}\n\n| key | default | |\n|---|---|---|").unwrap();
        } else if let Some(comment) = line.strip_prefix("# ") {
            write!(description, "{}{comment}", if description.is_empty() { "" } else { " " }).unwrap();
        } else if let Some((key, value)) = line.split_once(" = ") {
            let value = value.trim_matches(['[', ']']).replace('"', "");
            let default = if value.is_empty() { value } else { format!("`{value}`") };
            assert!(!description.is_empty(), "{key} has no comment");
            writeln!(document, "| `{key}` | {default} | {description} |").unwrap();
            description.clear();
        } else {
            description.clear();
        }
    }
    expect_file!["../../../../docs/configuration.md"].assert_eq(&document);
}
