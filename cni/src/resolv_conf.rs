//! Reads the name servers for the result from a file in the format of resolv.conf(5).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Context, Result};

/// Maximum number of bytes of the file that are read. Real files have a few hundred bytes.
const MAX_SIZE: u64 = 64 << 10;

/// Reads the file and converts it to the format of the result's `dns`.
pub(crate) fn read(path: &Path) -> Result<Value> {
    let mut text = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut text)).context("read", path)?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

fn parse(text: &str) -> Value {
    let (mut servers, mut domain, mut search, mut options) = (Vec::new(), None, Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => servers.extend(words.next()),
            Some("domain") => domain = words.next(),
            // The last `search` line takes precedence.
            Some("search") => search = words.collect(),
            Some("options") => options.extend(words),
            _ => {}
        }
    }
    let mut dns = Map::new();
    if let Some(domain) = domain {
        dns.insert("domain".into(), domain.into());
    }
    for (key, words) in [("nameservers", servers), ("search", search), ("options", options)] {
        if !words.is_empty() {
            dns.insert(key.into(), words.into());
        }
    }
    Value::Object(dns)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn name_servers_domains_and_options_are_read_and_the_rest_is_passed_over() {
        let text = "# made by hand\n; too\nnameserver 10.96.0.10\n nameserver\tfd96::a # primary\nnameserver\nsearch a.example\n\
                    search b.example c.example\ndomain d.example\noptions ndots:5\noptions edns0 trust-ad\nsortlist 10.0.0.0\n";
        let dns = json!({
            "nameservers": ["10.96.0.10", "fd96::a"], "domain": "d.example",
            "search": ["b.example", "c.example"], "options": ["ndots:5", "edns0", "trust-ad"],
        });
        assert_eq!(parse(text), dns);
        assert_eq!(parse(""), json!({}));
    }
}
