//! Chooses the controller for the next connection: the controller in use, or the next configured
//! controller after that one failed or sent a goodbye.

use std::net::{IpAddr, Ipv4Addr};

use hyper::Uri;
use hyper::http::uri::PathAndQuery;

use super::error::ControllerError;

/// The controllers in the order in which they are tried.
#[derive(Debug)]
pub(super) struct ControllerChoice {
    urls: Vec<Uri>,
    /// Index of the controller that is tried first.
    first: usize,
}

/// Parses a controller URL, and returns it without user, password and path, which earlier releases
/// accepted ([`check_url`]). Fails if it is not an `https://` URL with a host.
fn parse_url(text: &str) -> Result<Uri, ControllerError> {
    let parsed = text.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("https"));
    let of_host = parsed.and_then(|uri| {
        uri.host().filter(|host| !host.is_empty())?;
        let authority = uri.authority()?.as_str();
        let (_, host_and_port) = authority.rsplit_once('@').unwrap_or(("", authority));
        Uri::builder().scheme("https").authority(host_and_port).path_and_query("/").build().ok()
    });
    // The text before the at sign may be a password, so it is not shown.
    let shown = || if text.contains('@') { "a URL with a user or password".to_owned() } else { format!("{text:?}") };
    of_host.ok_or_else(|| {
        ControllerError::Unacceptable(format!("[controller]: {} is not a URL https://HOST:PORT", shown()))
    })
}

/// Fails if a controller URL has more than a host and a port, or if no controller can be there.
pub(super) fn check_url(text: &str) -> Result<(), ControllerError> {
    let refused = |why: &str| Err(ControllerError::Unacceptable(format!("[controller]: {text:?} {why}")));
    // The text before the at sign may be a password, so it is not shown, even if the rest is wrong.
    if text.contains('@') {
        let why = "[controller]: a URL has a user or password; write https://HOST:PORT, the token or certificate tells who this node is";
        return Err(ControllerError::Unacceptable(why.to_owned()));
    }
    let uri = parse_url(text)?;
    if uri.port_u16() == Some(0) {
        return refused("has the port 0; write that of the controller, such as 8443");
    }
    let written = text.parse::<Uri>().ok();
    if !matches!(written.as_ref().and_then(Uri::path_and_query).map(PathAndQuery::as_str), None | Some("" | "/")) {
        return refused("has a path, which the agent does not send; write https://HOST:PORT");
    }
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(address) if address.is_unspecified() || address.is_multicast() || address == Ipv4Addr::BROADCAST => {
            refused("has an address that no controller has; write a name or an address of the controller")
        }
        _ => Ok(()),
    }
}

impl ControllerChoice {
    /// Makes a choice that begins with the first of `urls`. Fails if one of them is not an
    /// `https://` URL with a host.
    pub(super) fn new(urls: &[String]) -> Result<Self, ControllerError> {
        let urls = urls.iter().map(|text| parse_url(text)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { urls, first: 0 })
    }

    /// Returns all controllers, each once, in the order in which they are tried.
    pub(super) fn in_order(&self) -> Vec<Uri> {
        self.urls.iter().cycle().skip(self.first).take(self.urls.len()).cloned().collect()
    }

    /// Records that the controller at `url` is in use.
    pub(super) fn connected(&mut self, url: &Uri) {
        self.first = self.index(url).unwrap_or(0);
    }

    /// Records that the controller at `url` failed or shuts down. From now on, the next controller
    /// in the list is tried first.
    pub(super) fn failed(&mut self, url: &Uri) {
        self.first = self.index(url).map_or(0, |index| (index + 1) % self.urls.len());
    }

    fn index(&self, url: &Uri) -> Option<usize> {
        self.urls.iter().position(|other| other == url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_controller_failed_the_next_one_is_tried_first_and_the_last_is_followed_by_the_first() {
        let urls = ["https://a:1", "https://b:1", "https://c:1"].map(str::to_owned);
        let mut choice = ControllerChoice::new(&urls).unwrap();
        let hosts = |choice: &ControllerChoice| -> String {
            choice.in_order().iter().map(|url| url.host().unwrap().to_owned()).collect()
        };
        assert_eq!(hosts(&choice), "abc");
        choice.failed(&choice.urls[0].clone());
        assert_eq!(hosts(&choice), "bca");
        choice.connected(&choice.urls[2].clone());
        assert_eq!(hosts(&choice), "cab");
        choice.failed(&choice.urls[2].clone());
        assert_eq!(hosts(&choice), "abc");
    }

    #[test]
    fn one_controller_is_tried_again_after_it_failed() {
        let mut choice = ControllerChoice::new(&["https://[2001:db8::1]:8443".to_owned()]).unwrap();
        choice.failed(&choice.urls[0].clone());
        assert_eq!(choice.in_order().len(), 1);
    }

    #[test]
    fn what_is_not_a_host_and_a_port_of_a_controller_is_refused_by_the_check_alone() {
        for (text, why) in [
            ("https://a:0", "has the port 0"),
            ("https://a:1/v1", "has a path"),
            ("https://a:1/?x", "has a path"),
            ("https://0.0.0.0:8443", "no controller has"),
            ("https://[::]:8443", "no controller has"),
            ("https://224.0.0.1", "no controller has"),
            ("https://[ff02::1]:1", "no controller has"),
        ] {
            let error = check_url(text).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains(why), "{error}");
        }
        let with_password = "https://user:password-of-user@a:1";
        let error = check_url(with_password).unwrap_err().to_string();
        assert!(error.contains("has a user or password") && !error.contains("password-of-user"), "{error}");
        for text in ["https://a", "https://127.0.0.1:8443/", "https://[2001:db8::1]:8443"] {
            check_url(text).unwrap();
        }
        // An agent of an earlier release ran with them. What it did not send is not sent now.
        let urls = [with_password, "https://a:1/v1", "https://a:1?x=1#y", "https://user@[2001:db8::1]:8443"];
        let choice = ControllerChoice::new(&urls.map(str::to_owned)).unwrap();
        let used: Vec<String> = choice.in_order().iter().map(Uri::to_string).collect();
        assert_eq!(used, ["https://a:1/", "https://a:1/", "https://a:1/", "https://[2001:db8::1]:8443/"]);
    }

    #[test]
    fn what_is_no_https_url_with_a_host_is_refused() {
        for text in ["http://a:1", "https://", "a:1", ""] {
            let error = ControllerChoice::new(&[text.to_owned()]).unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?} is not a URL https://HOST:PORT")), "{error}");
            check_url(text).unwrap_err();
        }
        let error = ControllerChoice::new(&["http://user:password@a".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("a URL with a user or password is not") && !error.contains("user:"), "{error}");
    }
}
