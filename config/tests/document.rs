//! docs/configuration.md says what the tables say. `INSTA_UPDATE=always cargo test -p undercroft-config` writes it anew.

use std::{fs, path::Path};

#[test]
fn the_page_is_the_tables() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let expected = undercroft_config::document();
    if std::env::var_os("INSTA_UPDATE").is_some_and(|value| value == "always") {
        fs::write(&path, &expected).unwrap();
    }
    let page = fs::read_to_string(&path).unwrap_or_default();
    let differ = page.lines().zip(expected.lines()).find(|(is, should)| is != should);
    assert!(
        page == expected,
        "docs/configuration.md is not what the tables of config/src/keys say (first difference: {differ:?}); write it anew: \
         INSTA_UPDATE=always cargo test -p undercroft-config"
    );
}
