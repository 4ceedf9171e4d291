//! URLs of etcd clusters.

use std::{borrow::Cow, time::Duration};

use distlock_core::BackendError;
use percent_encoding::percent_decode_str;

use crate::{EtcdConfig, backend::NAME};

const OPTIONS: &str = "`timeout`, `connect_timeout`, `prefix`, `user`, `password`, `ca`, `cert`, `key`, `server_name`";

/// What the options say that take effect together.
#[derive(Default)]
struct Options {
    user: Option<String>,
    password: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

/// Reads a URL. What it says of it in errors never has a part in it that may be of a password.
pub(crate) fn parse(url: &str) -> Result<EtcdConfig, BackendError> {
    let (scheme, rest) = url
        .split_once("://")
        .ok_or_else(|| wrong("the URL has no scheme: it begins with `etcd://` or `etcds://`"))?;
    let tls = match scheme {
        "etcd" => false,
        "etcds" => true,
        _ => return Err(wrong("the URL's scheme is neither `etcd` nor `etcds`")),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if path.contains('@') || query.contains('@') {
        // The login ends at the first `/` or `?`: the rest of a password may be in what is not the login.
        return Err(wrong(
            "there is an `@` behind the hosts: in a user or password, write `/`, `?`, `#`, `@` and `%` as `%2F`, `%3F`, `%23`, `%40` and `%25`",
        ));
    }
    if !path.is_empty() {
        return Err(wrong("there is a path behind the hosts: a prefix is given as `?prefix=…`"));
    }
    let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let endpoints = hosts.split(',').map(endpoint).collect::<Result<Vec<_>, _>>()?;
    let mut config = encrypted(EtcdConfig::new(endpoints), tls)?;
    let (user, password) = login.split_once(':').map_or((login, None), |(u, p)| (u, Some(p)));
    let mut options = Options {
        user: Some(decode(user)?).filter(|user| !user.is_empty()),
        password: password.map(decode).transpose()?,
        ..Options::default()
    };
    for option in query.split('&').filter(|option| !option.is_empty()) {
        config = set(config, &mut options, option, tls)?;
    }
    match (options.user, options.password) {
        (Some(user), password) => config = config.login(user, password.unwrap_or_default()),
        (None, Some(_)) => return Err(wrong("there is a password, but no user")),
        (None, None) => {}
    }
    certified(config, options.certificate, options.key)
}

fn set(
    mut config: EtcdConfig,
    options: &mut Options,
    option: &str,
    tls: bool,
) -> Result<EtcdConfig, BackendError> {
    let (name, value) = option.split_once('=').unwrap_or((option, ""));
    let value = decode(value)?;
    match name {
        "timeout" => config = config.request_timeout(duration("timeout", &value)?),
        "connect_timeout" => config = config.connect_timeout(duration("connect_timeout", &value)?),
        "prefix" => config = config.prefix(value),
        "user" => options.user = Some(value),
        "password" => options.password = Some(value),
        "ca" | "cert" | "key" | "server_name" if !tls => {
            return Err(wrong("the options `ca`, `cert`, `key` and `server_name` need `etcds`"));
        }
        "cert" => options.certificate = Some(value),
        "key" => options.key = Some(value),
        #[cfg(feature = "tls")]
        "ca" => config = config.ca_file(value),
        #[cfg(feature = "tls")]
        "server_name" => config = config.server_name(value),
        _ => return Err(wrong(format!("the URL has an option that is none of {OPTIONS}"))),
    }
    Ok(config)
}

#[cfg(feature = "tls")]
#[allow(clippy::unnecessary_wraps, reason = "its twin without the feature refuses")]
fn encrypted(config: EtcdConfig, tls: bool) -> Result<EtcdConfig, BackendError> {
    Ok(if tls { config.tls() } else { config })
}

#[cfg(not(feature = "tls"))]
fn encrypted(config: EtcdConfig, tls: bool) -> Result<EtcdConfig, BackendError> {
    if tls {
        return Err(wrong("`etcds` needs the feature `tls` of `distlock-etcd`"));
    }
    Ok(config)
}

fn certified(
    config: EtcdConfig,
    certificate: Option<String>,
    key: Option<String>,
) -> Result<EtcdConfig, BackendError> {
    match (certificate, key) {
        #[cfg(feature = "tls")]
        (Some(certificate), Some(key)) => Ok(config.certificate(certificate, key)),
        (None, None) => Ok(config),
        _ => Err(wrong("`cert` and `key` go together")),
    }
}

fn endpoint(text: &str) -> Result<String, BackendError> {
    // The brackets of an IPv6 address stay.
    let behind = text.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match text[behind..].find(':') {
        Some(at) => (&text[..behind + at], Some(&text[behind + at + 1..])),
        None => (text, None),
    };
    if host.is_empty() {
        return Err(wrong("the URL names no host"));
    }
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if inner.contains(['[', ']']) {
        // What is before it may be a part of a password.
        return Err(wrong("`[` and `]` stand around an IPv6 address, and nowhere else"));
    }
    let port = port.map_or(Some(2379), |port| port.parse::<u16>().ok().filter(|&port| port != 0));
    let port = port.ok_or_else(|| wrong("a port is not a number from 1 to 65535"))?;
    Ok(format!("{host}:{port}"))
}

fn duration(name: &str, text: &str) -> Result<Duration, BackendError> {
    let (digits, unit) = match text.strip_suffix("ms") {
        Some(digits) => (digits, 1),
        None => (text.strip_suffix('s').unwrap_or(""), 1000),
    };
    match digits.parse::<u32>() {
        Ok(number) if number > 0 => Ok(Duration::from_millis(u64::from(number) * unit)),
        _ => Err(wrong(format!("the option `{name}` is not a time such as `500ms` or `2s`"))),
    }
}

fn decode(text: &str) -> Result<String, BackendError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Cow::into_owned).map_err(|_| wrong("what is written with `%` is not UTF-8"))
}

fn wrong(problem: impl Into<Cow<'static, str>>) -> BackendError {
    BackendError::permanent(NAME, problem)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn urls_say_where_who_and_how() {
        let config = parse(
            "etcd://us%40er:p:%2Fw@a,b:1,[::1]:2/?timeout=250ms&connect_timeout=3s&prefix=l%2F",
        )
        .unwrap();
        assert_eq!(config.endpoints, ["a:2379", "b:1", "[::1]:2"]);
        assert_eq!(config.login, Some(("us@er".into(), "p:/w".into())));
        assert_eq!(config.prefix, "l/");
        assert_eq!(config.request_timeout, Duration::from_millis(250));
        assert_eq!(config.connect_timeout, Duration::from_secs(3));
        let config = parse("etcd://h?user=u&password=p%26").unwrap();
        assert_eq!(config.login, Some(("u".into(), "p&".into())));
    }

    #[cfg(feature = "tls")]
    #[test]
    fn etcds_is_encrypted() {
        let config = parse("etcds://h?ca=/ca.pem&cert=/c.pem&key=/k.pem&server_name=n").unwrap();
        let tls = config.tls.unwrap();
        assert_eq!(tls.ca_file, Some("/ca.pem".into()));
        assert_eq!(tls.certificate, Some(("/c.pem".into(), "/k.pem".into())));
        assert_eq!(tls.server_name.as_deref(), Some("n"));
        assert!(parse("etcds://h?cert=/c.pem").is_err());
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn etcds_names_the_feature_that_it_needs() {
        assert!(parse("etcds://h").unwrap_err().to_string().contains("`tls`"));
    }

    #[test]
    fn errors_name_the_problem_and_never_the_password() {
        for (url, word) in [
            ("hunter2@h", "no scheme"),
            ("hunter2://h", "scheme"),
            ("etcd://", "no host"),
            ("etcd://u:hunter2@", "no host"),
            ("etcd://u:hunter2@h:port", "port"),
            ("etcd://u:hunter2@h:0", "port"),
            ("etcd://u:hunt/er2@h", "%2F"),
            ("etcd://u:hunt?er2@h", "%2F"),
            ("etcd://u:hunter2%ff@h", "UTF-8"),
            ("etcd://:hunter2@h", "no user"),
            ("etcd://u:hunter2@h/path", "prefix"),
            ("etcd://u:hunter2@h?hunter2=1", "`connect_timeout`"),
            ("etcd://u:hunter2@h?timeout=hunter2", "`timeout`"),
            ("etcd://u:hunter2@h?timeout=0s", "`timeout`"),
            ("etcd://u:hunter2@h?ca=x", "`etcds`"),
            ("etcd://u:hunter2@[::1", "`]`"),
            ("etcd://u:hunter2]h:1", "`]`"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(!error.is_transient());
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(word), "{url}: {shown}");
            assert!(!shown.contains("hunt") && !shown.contains("er2"), "{shown}");
        }
    }

    #[test]
    fn debug_hides_passwords() {
        for url in [
            "etcd://u:hunter2@h",
            // The slip of giving it as a user.
            "etcd://hunter2@h",
        ] {
            let config = parse(url).unwrap();
            let shown = format!("{config:?} {config:#?}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    /// A URL as it is meant to be, and what it says, written by hand.
    #[derive(Clone, Debug)]
    struct Valid {
        user: String,
        password: String,
        prefix: String,
        hosts: Vec<(String, u16)>,
        timeout: u32,
    }

    fn valid() -> impl Strategy<Value = Valid> {
        let word = "\\PC{1,12}|[%@:/?#&=+ ,\\[\\]\\x00\\r\\n]{1,8}";
        let host = ("[a-z0-9.-]{1,12}|\\[[0-9a-f:]{2,8}\\]", 1..=u16::MAX);
        let hosts = prop::collection::vec(host, 1..4);
        (word, word, word, hosts, 10..=u32::MAX).prop_map(
            |(user, password, prefix, hosts, timeout)| Valid {
                user,
                password,
                prefix,
                hosts,
                timeout,
            },
        )
    }

    /// Writes every byte with `%`, so that nothing is left to chance.
    fn encode(text: &str) -> String {
        text.bytes().map(|byte| format!("%{byte:02X}")).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn no_url_whatsoever_makes_us_panic(
            url in "(etcds?://)?[%@:/?&=,\\[\\]a-f0-9é]{0,24}",
            any in "\\PC{0,40}",
        ) {
            let _ = (parse(&url), parse(&any), parse(&format!("etcd://{any}")));
        }

        #[test]
        fn what_a_url_says_is_what_is_configured(valid in valid()) {
            let hosts: Vec<_> =
                valid.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
            let [user, password, prefix] =
                [&valid.user, &valid.password, &valid.prefix].map(|text| encode(text));
            let url = format!(
                "etcd://{user}:{password}@{}/?prefix={prefix}&timeout={}ms",
                hosts.join(","),
                valid.timeout
            );
            let config = parse(&url).unwrap();
            prop_assert_eq!(config.login, Some((valid.user, valid.password)));
            prop_assert_eq!(config.prefix, valid.prefix);
            prop_assert_eq!(config.endpoints, hosts);
            let asked = Duration::from_millis(valid.timeout.into());
            prop_assert_eq!(config.request_timeout, asked.min(Duration::from_secs(86_400)));
        }

        /// One wrong character in a URL with a password: read, or refused without a word of the password.
        #[test]
        fn a_damaged_url_is_refused_without_its_password(
            at in any::<prop::sample::Index>(), put in "[%@:/?#&=,\\[\\]\\x00 é]{0,2}", cut in 0_usize..3,
            tail in "(/)?(\\?[a-z_]{0,9}=?[a-z0-9]{0,5})?",
        ) {
            let url = format!("etcd://someone:hunter2swordfish@host:2379{tail}");
            let at = at.index(url.len());
            let damaged: String = [&url[..at], &put, url.get(at + cut..).unwrap_or("")].concat();
            let shown = match parse(&damaged) {
                Ok(config) => format!("{config:?} {config:#?}"),
                Err(error) => format!("{error} {error:?} {error:#?}"),
            };
            let told = ["hunter", "swordf"].into_iter().find(|part| shown.contains(part));
            prop_assert_eq!(told, None, "{}: {}", damaged, shown);
        }
    }
}
