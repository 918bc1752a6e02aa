//! Who asks a registry: nobody in particular, with a token that says so, or somebody whom the host's files know.
//!
//! Protocol: the distribution project's "Token Authentication Specification" (the challenge is RFC 6750's), and RFC 7617's
//! Basic. Files: `auths` of Docker's config.json and of podman's auth.json, as they stand; programs that keep passwords
//! elsewhere (`credHelpers`) are not run.

use std::{collections::BTreeMap, env, path::PathBuf};

use serde::Deserialize;
use ureq::http::{Response, Uri};

use super::super::{
    error::{Result, SourceError},
    http::{Client, is_loopback},
    manifest::read_small,
};

/// The longest answer with a token, and the longest file of passwords, in bytes.
const LONGEST: u64 = 1 << 20;

/// Where passwords may be: `$DOCKER_CONFIG` or `~/.docker`, and podman's.
pub(crate) fn credential_files() -> Vec<PathBuf> {
    let home = |name: &str| env::var_os("HOME").map(|home| PathBuf::from(home).join(name));
    let docker = env::var_os("DOCKER_CONFIG").map(PathBuf::from).or_else(|| home(".docker"));
    let run = env::var_os("XDG_RUNTIME_DIR").map(|run| PathBuf::from(run).join("containers/auth.json"));
    [docker.map(|folder| folder.join("config.json")), run, home(".config/containers/auth.json")]
        .into_iter()
        .flatten()
        .collect()
}

/// What a registry is to be told: the header's value, `Basic …`, if a file knows it.
pub(super) fn password(files: &[PathBuf], registry: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        auths: BTreeMap<String, Auth>,
    }
    #[derive(Deserialize)]
    struct Auth {
        auth: Option<String>,
    }
    // Docker's registry has a name in that file that it has nowhere else.
    let matches = |key: &str| {
        let host = key.split_once("://").map_or(key, |(_, rest)| rest);
        let host = host.split('/').next().unwrap_or_default();
        let host = if host == "index.docker.io" { "docker.io" } else { host };
        host.eq_ignore_ascii_case(registry)
    };
    // A file that is not there, or not what it should be, knows nothing.
    let config = |file: &PathBuf| {
        let bytes = read_small(file, LONGEST, "the file of passwords").ok()?;
        serde_json::from_slice::<Config>(&bytes).ok()
    };
    let auth = files.iter().filter_map(config).find_map(|config| {
        config.auths.into_iter().find(|(key, _)| matches(key)).and_then(|(_, auth)| auth.auth)
    })?;
    let base64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'-' | b'_');
    (!auth.is_empty() && auth.bytes().all(base64)).then(|| format!("Basic {auth}"))
}

/// What a registry wants to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// Reads `WWW-Authenticate`; a token before a password, if there is a choice.
    pub(super) fn of<B>(response: &Response<B>) -> Option<Self> {
        let all = response.headers().get_all("www-authenticate");
        let challenges: Vec<_> = all.iter().filter_map(|one| Self::parse(one.to_str().ok()?)).collect();
        let bearer = challenges.iter().find(|one| matches!(one, Self::Bearer { .. }));
        bearer.or(challenges.first()).cloned()
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = parameters(rest);
        let realm = parameters.remove("realm")?;
        Some(Self::Bearer { realm, service: parameters.remove("service"), scope: parameters.remove("scope") })
    }
}

/// `key="value",key=value` (RFC 9110, section 11.2).
fn parameters(mut rest: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
        let mut value = String::new();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut characters = quoted.char_indices();
            rest = "";
            while let Some((at, c)) = characters.next() {
                match c {
                    '"' => {
                        rest = &quoted[at + 1..];
                        break;
                    }
                    '\\' => value.extend(characters.next().map(|(_, c)| c)),
                    c => value.push(c),
                }
            }
        } else {
            let end = after.find(',').unwrap_or(after.len());
            value = after[..end].trim().to_owned();
            rest = &after[end..];
        }
        found.insert(key, value);
    }
    found
}

/// Asks for a token; gives the header's value, `Bearer …`.
pub(super) fn token(
    client: &Client,
    registry: &str,
    challenge: (&str, Option<&str>, &str),
    password: Option<&String>,
    clear_text: bool,
) -> Result<String> {
    let (realm, service, scope) = challenge;
    let wrong = |reason: String| SourceError::Registry { registry: registry.into(), reason };
    let uri: Uri = realm
        .parse()
        .map_err(|_| wrong(format!("sends us for a token to {realm:?}, which is no address")))?;
    let followed = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => clear_text || is_loopback(&uri),
        _ => false,
    };
    if !followed {
        return Err(wrong(format!(
            "sends us for a token to {realm:?}, which is not encrypted: not followed"
        )));
    }
    let mut url = format!("{realm}{}", if realm.contains('?') { '&' } else { '?' });
    if let Some(service) = service {
        url += &format!("service={}&", escape(service));
    }
    url += &format!("scope={}", escape(scope));
    let headers: Vec<_> = password.map(|password| ("authorization", password.clone())).into_iter().collect();
    let answer = client.get_small(&url, &headers, LONGEST, "the answer with a token")?;
    match answer.status {
        200 => {}
        401 | 403 => {
            let known = if password.is_some() { "the password that is known here" } else { "no password" };
            return Err(wrong(format!(
                "gives no token ({}) for {known}: `docker login {registry}` puts the right one into \
                                      ~/.docker/config.json, where it is found",
                answer.status
            )));
        }
        status => return Err(SourceError::Status { url: super::super::http::shown(realm), status }),
    }
    #[derive(Deserialize)]
    struct Token {
        token: Option<String>,
        access_token: Option<String>,
    }
    let token: Option<Token> = serde_json::from_slice(&answer.bytes).ok();
    let token = token.and_then(|answer| answer.token.or(answer.access_token));
    let token = token.filter(|token| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic()));
    token
        .map(|token| format!("Bearer {token}"))
        .ok_or_else(|| wrong("answers with a token that is none".into()))
}

/// A text as part of a query (RFC 3986, section 3.4).
fn escape(text: &str) -> String {
    let plain =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b':' | b'/' | b',');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        };
        for (text, challenge) in [
            (
                r#"Bearer realm="https://a/token",service="reg",scope="repository:x:pull,push""#,
                Some(bearer("https://a/token", Some("reg"), Some("repository:x:pull,push"))),
            ),
            (
                r#"bearer realm="https://a/\"q\"", service=reg"#,
                Some(bearer("https://a/\"q\"", Some("reg"), None)),
            ),
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            ("Basic", Some(Challenge::Basic)),
            ("Bearer service=x", None),
            ("Bearer realm=\"unclosed", Some(bearer("unclosed", None, None))),
            ("Negotiate abc", None),
            ("", None),
        ] {
            assert_eq!(Challenge::parse(text), challenge, "{text}");
        }
    }

    #[test]
    fn passwords_are_found_by_every_name_of_a_registry() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        std::fs::write(
            &file,
            r#"{"auths": {"https://index.docker.io/v1/": {"auth": "YTpi"}, "ghcr.io": {"auth": "Yzpk"},
                "empty.example": {}, "bad.example": {"auth": "a\r\nb"}}, "credsStore": "x"}"#,
        )
        .unwrap();
        let files = [folder.path().join("missing"), file];
        assert_eq!(password(&files, "docker.io").as_deref(), Some("Basic YTpi"));
        assert_eq!(password(&files, "ghcr.io").as_deref(), Some("Basic Yzpk"));
        for none in ["empty.example", "bad.example", "other.example"] {
            assert_eq!(password(&files, none), None, "{none}");
        }
    }
}
