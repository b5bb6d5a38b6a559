//! Values as they are written on the command line: full names, ends of flows, times.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

/// `SERVICE/BACKEND`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BackendName {
    pub(super) service: String,
    pub(super) backend: String,
}

impl FromStr for BackendName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((service, backend))
                if !service.is_empty() && !backend.is_empty() && !backend.contains('/') =>
            {
                Ok(Self { service: service.to_owned(), backend: backend.to_owned() })
            }
            _ => Err("write it as SERVICE/BACKEND, for instance web/web-1".to_owned()),
        }
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.backend)
    }
}

/// An address with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) address: IpAddr,
    pub(super) port: Option<u16>,
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(both) = text.parse::<std::net::SocketAddr>() {
            return Ok(Self { address: both.ip(), port: Some(both.port()) });
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        bare.parse().map(|address| Self { address, port: None }).map_err(|_| {
            "write an address, or address and port as 192.0.2.1:80 or [2001:db8::1]:80".to_owned()
        })
    }
}

/// Reads a time such as `5`, `5s`, `500ms` or `2m`: above zero, at most a day.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|character: char| character.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err("write a time such as 5, 5s, 500ms or 2m".to_owned()),
    };
    let seconds =
        number.parse::<f64>().map_err(|_| "write a time such as 5, 5s, 500ms or 2m".to_owned())? * factor;
    if (0.001..=86_400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("choose a time from 1ms to 24h".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_need_both_parts() {
        let name: BackendName = "web/web-1".parse().unwrap();
        assert_eq!((name.service.as_str(), name.backend.as_str()), ("web", "web-1"));
        for bad in ["web", "/web-1", "web/", "a/b/c", ""] {
            assert!(bad.parse::<BackendName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ends_of_both_families() {
        let end = |text: &str| text.parse::<End>().map(|end| (end.address.to_string(), end.port));
        assert_eq!(end("192.0.2.1:80"), Ok(("192.0.2.1".to_owned(), Some(80))));
        assert_eq!(end("192.0.2.1"), Ok(("192.0.2.1".to_owned(), None)));
        assert_eq!(end("2001:db8::1"), Ok(("2001:db8::1".to_owned(), None)));
        assert_eq!(end("[2001:db8::1]"), Ok(("2001:db8::1".to_owned(), None)));
        assert_eq!(end("[2001:db8::1]:80"), Ok(("2001:db8::1".to_owned(), Some(80))));
        for bad in ["", "host", "192.0.2.1:", "192.0.2.1:70000", "[::1"] {
            assert!(end(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_units_and_bounds() {
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("0.5s"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        for bad in ["", "0", "-1", "nan", "inf", "1e99", "5 s", "5x", "s", "25h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
