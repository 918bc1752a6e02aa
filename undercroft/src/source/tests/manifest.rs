//! Lists as WSL has them, and as nobody should.

use super::*;

/// The shape of WSL's own list, shortened, with fields that nobody knows.
const LIST: &str = r#"{
    "Distributions": [{"Name": "Old", "StoreAppId": "x"}],
    "Default": "Ubuntu",
    "ModernDistributions": {
        "Ubuntu": [
            {"Name": "Ubuntu", "FriendlyName": "Ubuntu", "Default": true, "Amd64Url": {"Url": "https://e/u.wsl", "Sha256": "0xAA"}},
            {"Name": "Ubuntu-24.04", "FriendlyName": "Ubuntu 24.04 LTS", "Default": false, "New": [1],
             "Amd64Url": {"Url": "https://e/u24.wsl", "Sha256": "0X0A", "New": 1},
             "Arm64Url": {"Url": "https://e/u24-arm.wsl", "Sha256": "0b"}}
        ],
        "Debian": [{"Name": "debian-12", "FriendlyName": "Debian\u001b[31m GNU/Linux", "Amd64Url": {"Url": "file:///d.wsl", "Sha256": "0C"}}],
        "AlmaLinux": [
            {"Name": "AlmaLinux-9", "Amd64Url": {"Url": "https://e/a9", "Sha256": "0d"}},
            {"Name": "AlmaLinux-8", "Amd64Url": {"Url": "https://e/a8", "Sha256": "0e"}}
        ],
        "Bad": [
            {"Name": "no-digest", "Amd64Url": {"Url": "https://e/x"}},
            {"Name": "bad-digest", "Amd64Url": {"Url": "https://e/x", "Sha256": "xyz"}},
            {"Name": "bad-url", "Amd64Url": {"Url": "javascript:x", "Sha256": "0f"}},
            {"Name": "arm-only", "Arm64Url": {"Url": "https://e/x", "Sha256": "0f"}},
            {"Name": "../evil", "Amd64Url": {"Url": "https://e/x", "Sha256": "0f"}},
            {"Name": 7}, 8, {}
        ]
    }
}"#;

/// Two digits stand for a whole digest.
fn text() -> String {
    let mut text = LIST.to_owned();
    for short in ["AA", "0A", "0b", "0C", "0d", "0e", "0f"] {
        for quote in ["\"", "\"0x", "\"0X"] {
            text = text.replace(
                &format!("Sha256\": {quote}{short}\""),
                &format!("Sha256\": {quote}{}\"", short.repeat(32)),
            );
        }
    }
    text
}

fn catalogue() -> Catalogue {
    let more = r#"{"ModernDistributions": {"Mine": [{"Name": "debian-12", "Amd64Url": {"Url": "file:///mine", "Sha256": "00"}}]}}"#;
    let more = more.replace("\"00\"", &format!("\"{}\"", "0".repeat(64)));
    let lists = [("more.json", format!("\u{feff}{more}")), ("list.json", text())];
    Catalogue {
        lists: lists.iter().map(|(from, text)| List::parse(from, text.as_bytes()).unwrap()).collect(),
    }
}

#[test]
fn lists_are_listed_in_their_order() {
    let catalogue = catalogue();
    let names = |architecture| {
        let listed = catalogue.list(architecture);
        listed.iter().map(|entry| format!("{} ({})", entry.name, entry.friendly_name)).collect::<Vec<_>>()
    };
    assert_eq!(
        names(Architecture::Amd64),
        [
            "debian-12 (debian-12)",
            "Ubuntu (Ubuntu)",
            "Ubuntu-24.04 (Ubuntu 24.04 LTS)",
            "AlmaLinux-9 (AlmaLinux-9)",
            "AlmaLinux-8 (AlmaLinux-8)",
        ]
    );
    assert_eq!(names(Architecture::Arm64), ["Ubuntu-24.04 (Ubuntu 24.04 LTS)", "arm-only (arm-only)"]);
    assert_eq!(catalogue.default_name(), Some("Ubuntu"));
}

#[test]
fn names_are_found_whatever_their_case() {
    let catalogue = catalogue();
    let url = |name: &str| {
        let (entry, _) = catalogue.find(name).unwrap();
        entry.package(Architecture::Amd64).unwrap().url.clone()
    };
    assert_eq!(url("ubuntu"), "https://e/u.wsl");
    assert_eq!(url("UBUNTU-24.04"), "https://e/u24.wsl");
    assert_eq!(url("debian"), "file:///d.wsl", "a flavour of one");
    assert_eq!(url("Debian-12"), "file:///mine", "a list that comes besides goes before");
    let (entry, from) = catalogue.find("ubuntu-24.04").unwrap();
    assert_eq!(from, "list.json");
    let digest = entry.package(Architecture::Arm64).unwrap().digest;
    assert_eq!(digest.to_string(), "0b".repeat(32));
}

#[test]
fn what_cannot_be_found_or_used_is_told() {
    let catalogue = catalogue();
    let told = |name: &str| match catalogue.find(name) {
        Ok((entry, from)) => match entry.package(Architecture::Amd64) {
            Ok(package) => panic!("{name}: {package:?}"),
            Err(reason) => {
                let (name, from, reason) = (entry.name.clone(), from.into(), reason.into());
                SourceError::Listed { name, from, reason }.to_string()
            }
        },
        Err(error) => error.to_string(),
    };
    let names = [
        "debain",
        "ubuntu-24",
        "alma",
        "zzz",
        "",
        "almalinux",
        "no-digest",
        "bad-digest",
        "bad-url",
        "arm-only",
    ];
    let mut all: Vec<_> = names.iter().map(|name| told(name)).collect();
    for bad in ["", "[]", "{}", "{\"ModernDistributions\": []}", "{\"ModernDistributions\": {\"a\": 7}}"] {
        all.push(List::parse("bad.json", bad.as_bytes()).unwrap_err().to_string());
    }
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn digests_are_read_as_lists_write_them() {
    let digits = "0123456789abcdef".repeat(4);
    let whole = digits.parse().ok();
    assert!(whole.is_some());
    for good in [
        digits.clone(),
        digits.to_uppercase(),
        format!("0x{digits}"),
        format!(" 0X{}\n", digits.to_uppercase()),
    ] {
        assert_eq!(digest(&good), whole, "{good}");
    }
    for bad in
        ["", "0x", "00", &format!("{digits}0"), &format!("0x0x{}", &digits[2..]), &digits.replace('a', "g")]
    {
        assert_eq!(digest(bad), None, "{bad}");
    }
}
