//! Tests the page in a browser: what the operator sees and does there.

use std::path::Path;
use std::sync::Arc;

use hyper::Method;
use interop_tests::stored_edges;
use serde_json::{Value, json};

use crate::harness::{Cloud, Node, Stream};
use crate::page::{SERVED, session};
use crate::webdriver::{Browser, ENTER, TAB, with_browser};

/// The report from a hostile node.
const HOSTILE: &str = "<img src=x onerror=\"window.hacked=1\"><script>window.hacked=1</script> ufw drops";

/// Returns a JavaScript expression that is true if a node's row contains this text after the name.
fn row_says(node: &str, text: &str) -> String {
    format!(
        "[...document.querySelectorAll('#node-rows tr')].some(row => row.innerText.startsWith('{node}') && row.innerText.includes('{text}'))"
    )
}

async fn connected(cloud: &Cloud, role: &str, name: &str, community: Option<&str>, report: Value) -> (Node, Stream) {
    let node = cloud.node(role, name).await;
    if community.is_some() {
        cloud.label(name, community).await;
    }
    let stream = node.watch().await;
    assert_eq!(node.ask(Method::PUT, "", Some(report)).await.0, 204);
    (node, stream)
}

fn report(up: u32, wanted: u32, obstacles: &[&str]) -> Value {
    json!({
        "addresses": ["192.0.2.1"], "port": 4500, "tunnels": {"up": up, "wanted": wanted}, "version": "0.1.0", "obstacles": obstacles,
    })
}

/// Adds the traffic of a node's tunnels to its report: the rates, and a thousand times as many
/// bytes.
fn with_traffic(mut report: Value, received_per_second: u64, sent_per_second: u64) -> Value {
    report["traffic"] = json!({
        "received": received_per_second.saturating_mul(1000), "sent": sent_per_second.saturating_mul(1000),
        "received_per_second": received_per_second, "sent_per_second": sent_per_second,
    });
    report
}

fn page(cloud: &Cloud) -> String {
    format!("http://{}/ui/", cloud.server.page[0])
}

async fn sign_in(browser: &Browser, cloud: &Cloud) {
    browser.open(&format!("{}#{}", page(cloud), session(cloud).await)).await;
    browser.wait("document.getElementById('live').dataset.state === 'live' && document.querySelectorAll('#node-rows tr').length").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_signs_in_and_finds_a_node_with_the_keyboard_alone() {
    let cloud = Cloud::with(SERVED).await;
    let _hub = connected(&cloud, "hub", "hub-1", None, with_traffic(report(2, 2, &[]), 340_000, 1_250_000)).await;
    let of_edge = with_traffic(report(1, 2, &[]), 1_250_000, 340_000);
    let _edge = connected(&cloud, "edge", "edge-1", Some("alpha"), of_edge).await;
    cloud.node("edge", "edge-2").await;
    let credential = session(&cloud).await;
    let url = page(&cloud);
    with_browser(|browser: Arc<Browser>| async move {
        browser.open(&url).await;
        browser.wait("document.activeElement.id === 'credential'").await;
        browser.press("wrong".chars().chain([ENTER])).await;
        browser.wait("document.getElementById('sign-in-error').innerText.includes('has ended, or the credential is wrong')").await;
        // The browser itself reports the refused request.
        assert!(browser.complaints().await.iter().all(|complaint| complaint.contains("401")));
        browser.press(credential.chars().chain([ENTER])).await;
        browser.wait(&row_says("hub-1", "connected")).await;
        browser.wait(&row_says("edge-1", "1 of 2")).await;
        browser.wait(&row_says("edge-2", "never")).await;
        assert_eq!(browser.value("document.getElementById('figures').innerText.replace(/\\s+/g, ' ')").await.as_str().unwrap()
            .split(" Segments").next().unwrap(), "Nodes connected 2 of 3 1 node not connected Tunnels up 3 of 4 1 down Traffic 1.5 MB/s in all tunnels");
        // Moves from the section of nodes to the search, then to the one row that is left.
        browser.value("document.activeElement.id").await;
        browser.press([TAB]).await;
        browser.wait("document.activeElement.id === 'filter-text'").await;
        browser.press("edge-1".chars()).await;
        browser.wait("document.querySelectorAll('#node-rows tr').length === 1").await;
        assert_eq!(browser.value("document.getElementById('shown').innerText").await, "1 of 3 nodes");
        let mut pressed = 0;
        while browser.value("document.activeElement.dataset.key").await != "edge-1" {
            pressed += 1;
            assert!(pressed < 30, "no way to the row with the Tab key");
            browser.press([TAB]).await;
        }
        browser.press([ENTER]).await;
        browser.wait("document.activeElement.getAttribute('aria-expanded') === 'true'").await;
        browser.wait("document.querySelector('tr.details').innerText.includes('1 of 2 tunnels are down')").await;
        browser.wait(&row_says("edge-1", "1.2 MB/s in, 340 kB/s out")).await;
        browser.wait("document.querySelector('tr.details').innerText.includes('1.2 GB received, 340 MB sent since the agent started')").await;
        // A group of the map is also a button.
        browser.value("document.querySelector('[data-key=\"map:alpha\"]').focus()").await;
        let says = browser.value("document.activeElement.getAttribute('aria-label')").await;
        assert_eq!(says, "Community alpha: 1 of 1 connected, 1 of 2 tunnels up, 1.2 MB/s in, 340 kB/s out. Show its nodes in the table.");
        browser.press([ENTER]).await;
        browser.wait("document.getElementById('filter-community').value === 'alpha' && document.activeElement.id === 'nodes'").await;
        // Signing out removes the credential, also for a reload.
        browser.value("document.getElementById('sign-out').focus()").await;
        browser.press([ENTER]).await;
        browser.wait("!document.getElementById('sign-in').hidden").await;
        browser.open(&url).await;
        browser.wait("document.activeElement.id === 'credential' && document.getElementById('overview').hidden").await;
        assert_eq!(browser.complaints().await, [""; 0]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_follows_what_happens_and_shows_hostile_text_as_text() {
    let cloud = Arc::new(Cloud::with(SERVED).await);
    let (_hub, hub_stream) = connected(&cloud, "hub", "hub-1", None, report(2, 2, &[])).await;
    let (edge, edge_stream) = connected(&cloud, "edge", "edge-1", Some("alpha"), report(2, 2, &[HOSTILE])).await;
    let at = cloud;
    with_browser(|browser: Arc<Browser>| async move {
        sign_in(&browser, &at).await;
        assert_eq!(browser.value("location.hash").await, "", "the credential leaves the address");
        browser
            .wait("document.getElementById('problem-list').innerText.includes('onerror=\"window.hacked=1\"><script>')")
            .await;
        assert_eq!(
            browser.value("[window.hacked, document.querySelectorAll('main img, main script').length]").await,
            json!([null, 0])
        );
        // Nothing is loaded from other sites.
        let elsewhere =
            "performance.getEntriesByType('resource').filter(entry => !entry.name.startsWith(location.origin)).length";
        assert_eq!(browser.value(elsewhere).await, 0);
        // Changes are shown and announced to screen readers.
        assert_eq!(edge.ask(Method::PUT, "", Some(report(2, 2, &[]))).await.0, 204);
        browser.wait(&row_says("edge-1", "connected")).await;
        browser.wait("document.getElementById('announce').innerText === 'edge-1: connected'").await;
        browser.wait("document.getElementById('problems').hidden").await;
        // Traffic: its line on the map becomes wider, and any number that a node reports is short.
        let width = "parseFloat(getComputedStyle(document.querySelector('#map .link')).strokeWidth)";
        assert_eq!(browser.value(width).await, 2.5);
        browser.wait(&row_says("edge-1", "\u{2013}")).await;
        for (received, shown, wider) in
            [(0, "0 B/s in, 340 kB/s out", 5.0), (u64::MAX, "18 EB/s in, 340 kB/s out", 9.4)]
        {
            let sent = with_traffic(report(2, 2, &[]), received, 340_000);
            assert_eq!(edge.ask(Method::PUT, "", Some(sent)).await.0, 204);
            browser.wait(&row_says("edge-1", shown)).await;
            assert!(browser.value(width).await.as_f64().unwrap() > wider);
            browser
                .wait(&format!("document.querySelector('[data-key=\"map:alpha\"]').textContent.includes('{shown}')"))
                .await;
            browser.wait(&format!("document.getElementById('community-rows').innerText.includes('{shown}')")).await;
        }
        // An agent of an earlier release reports none.
        assert_eq!(edge.ask(Method::PUT, "", Some(report(2, 2, &[]))).await.0, 204);
        browser.wait("!document.getElementById('community-rows').innerText.includes('B/s')").await;
        let reported = with_traffic(report(2, 2, &[]), 1_000, 1_000);
        assert_eq!(edge.ask(Method::PUT, "", Some(reported)).await.0, 204);
        browser.wait(&row_says("edge-1", "1.0 kB/s in, 1.0 kB/s out")).await;
        drop(edge_stream);
        browser.wait(&row_says("edge-1", "not connected")).await;
        assert_eq!(browser.value(&row_says("edge-1", "B/s")).await, false, "an old rate is not shown");
        browser.wait("document.getElementById('announce').innerText === 'edge-1: not connected'").await;
        at.deregister("edge-1").await;
        browser.wait("document.querySelectorAll('#node-rows tr').length === 1").await;
        assert_eq!(browser.complaints().await, [""; 0]);
        // The operator ends a session.
        assert_eq!(at.operator(Method::DELETE, "/v1/page-sessions", None).await.0, 204);
        browser.wait("document.getElementById('sign-in-error').innerText.includes('The session has ended')").await;
        assert_eq!(browser.value("sessionStorage.length").await, 0);
        // The controller becomes unreachable. The page keeps the data and marks it as old.
        sign_in(&browser, &at).await;
        drop(hub_stream);
        let Ok(cloud) = Arc::try_unwrap(at) else { panic!("nobody else holds it") };
        cloud.server.stop().await;
        browser.wait("document.getElementById('live').dataset.state === 'lost'").await;
        browser.wait("document.getElementById('live').innerText.includes('Next attempt in')").await;
        assert_eq!(browser.value("document.querySelectorAll('#node-rows tr').length").await, 1);
    })
    .await;
}

/// JavaScript functions for the contrast of two colours (WCAG 2.2, 1.4.3).
const COLOURS: &str = "const parse = text => { const all = text.match(/[\\d.]+/g).map(Number); return all.length < 4 ? [...all, 1] : all; };
    const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
        .reduce((sum, c, at) => sum + c * [.2126, .7152, .0722][at], 0);
    const ground = element => { for (let at = element; at; at = at.parentElement) {
        const color = parse(getComputedStyle(at).backgroundColor); if (color[3] === 1) return color; } return [255, 255, 255]; };
    const contrast = (color, behind) => { const [one, other] = [light(parse(color)), light(ground(behind))].sort((a, b) => b - a);
        return (one + .05) / (other + .05); };";

/// JavaScript that computes the contrast of texts to their backgrounds, the lowest first.
const CONTRASTS: &str = "const texts = [...document.querySelectorAll('body *')].filter(element => element.checkVisibility() && !element.disabled
        && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
    return texts.map(element => { const style = getComputedStyle(element);
        return [contrast(element.namespaceURI.endsWith('svg') ? style.fill : style.color, element), element.outerHTML.slice(0, 80)];
    }).sort((a, b) => a[0] - b[0]).slice(0, 3);";

/// JavaScript that describes the focused element: its text, whether it follows the one that was
/// focused when this ran before, the width of the ring around it in pixels, and the ring's contrast
/// (WCAG 2.2, 2.4.7 and 1.4.11). Null if nothing is focused.
const FOCUSED: &str = "const at = document.activeElement, last = window.focusedBefore;
    if (!at || at === document.body) return null;
    window.focusedBefore = at;
    const area = at.closest('#map') && at.querySelector('.area'), style = getComputedStyle(area || at);
    const width = parseFloat(area ? style.strokeWidth : style.outlineStyle === 'none' ? 0 : style.outlineWidth);
    return [at.outerHTML.slice(0, 90), !last || Boolean(last.compareDocumentPosition(at) & Node.DOCUMENT_POSITION_FOLLOWING),
        width, contrast(area ? style.stroke : style.outlineColor, at.parentElement)];";

/// Returns an expression for a body of JavaScript that uses [`COLOURS`].
fn with_colours(body: &str) -> String {
    format!("(() => {{ {COLOURS}\n{body} }})()")
}

/// Presses the Tab key from the first element of the page to the last one.
async fn tab_through(browser: &Browser, scheme: &str) {
    browser.value("window.focusedBefore = document.getElementById('skip'), window.focusedBefore.focus()").await;
    let mut seen = 1;
    loop {
        browser.press([TAB]).await;
        let focused = browser.value(&with_colours(FOCUSED)).await;
        // After the last element, the focus leaves the page or begins again.
        let [what, follows, width, contrast] = focused.as_array().map_or(&[][..], Vec::as_slice) else { break };
        if *follows == false && what.as_str().unwrap().contains("id=\"skip\"") {
            break;
        }
        assert_eq!(*follows, true, "{scheme}: it is before the element that was focused last: {what}");
        assert!(width.as_f64().unwrap() >= 2.0, "{scheme}: a ring of {width} pixels: {what}");
        assert!(contrast.as_f64().unwrap() >= 3.0, "{scheme}: a ring with a contrast of {contrast}: {what}");
        seen += 1;
        assert!(seen < 200, "{scheme}: the Tab key goes round in a circle at {what}");
    }
    let all = "[...document.querySelectorAll('a[href], button, input, select, [tabindex=\"0\"]')].filter(element => \
        element.checkVisibility() && !element.disabled).length";
    assert_eq!(browser.value(all).await, seen, "{scheme}: elements that the Tab key reaches");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_screen_reader_is_told_names_and_the_tab_key_goes_through_the_page_in_order_in_both_schemes() {
    let cloud = Arc::new(Cloud::with(SERVED).await);
    let _hub = connected(&cloud, "hub", "hub-1", None, report(2, 2, &[])).await;
    let obstacles = ["ufw drops forwarded packets of pods"];
    let _edge = connected(&cloud, "edge", "edge-1", Some("alpha"), report(1, 2, &obstacles)).await;
    cloud.token("hub", Some("hub-2")).await;
    let at = cloud.clone();
    with_browser(|browser: Arc<Browser>| async move {
        sign_in(&browser, &at).await;
        browser.wait(&row_says("edge-1", "1 of 2")).await;
        let told = browser.accessibility().await;
        let named = [
            "button",
            "link",
            "textbox",
            "searchbox",
            "combobox",
            "img",
            "image",
            "table",
            "region",
            "navigation",
            "search",
            "heading",
            "columnheader",
            "rowheader",
            "group",
        ];
        let nameless: Vec<_> =
            told.iter().filter(|(role, name)| named.contains(&role.as_str()) && name.is_empty()).collect();
        assert!(nameless.is_empty(), "{nameless:?} of {told:?}");
        for (role, name) in [
            ("heading", "Problems"),
            ("heading", "Map"),
            ("heading", "Segments"),
            ("heading", "Certificates"),
            ("heading", "Joins"),
            ("heading", "Nodes"),
            ("heading", "Communities"),
            ("search", "Filter the nodes"),
            ("searchbox", "Search"),
            ("combobox", "Role"),
            ("combobox", "State"),
            ("combobox", "Community"),
            ("button", "Clear"),
            ("button", "Sign out"),
            ("table", "Nodes"),
            ("table", "Communities"),
            ("columnheader", "Tunnels"),
            ("rowheader", "edge-1"),
            ("button", "edge-1"),
            ("navigation", "Pages of the nodes"),
            ("button", "Next"),
        ] {
            assert!(told.iter().any(|(r, n)| r == role && n.contains(name)), "{role} {name}: {told:?}");
        }
        // What colours and lines say is also told in words.
        for words in ["1 of 2", "Community alpha: 1 of 1 connected", "percent of 10.77.0.0/24 is taken", "ufw drops"] {
            assert!(told.iter().any(|(_, name)| name.contains(words)), "{words}: {told:?}");
        }
        for scheme in ["light", "dark"] {
            browser.prefer("prefers-color-scheme", scheme).await;
            tab_through(&browser, scheme).await;
        }
        assert_eq!(browser.complaints().await, [""; 0]);
    })
    .await;
}

/// Looks at the lower part of the page: segments as filled bars, open joins, certificates.
async fn segments_joins_and_certificates(browser: &Browser) {
    // The width of each part of a bar, in percent of the bar, and what the screen reader says. Each
    // of the 13 edges holds one of 32 segments of IPv4 and one of 64 of IPv6; 4 are reserved.
    let bars = browser.value("[...document.querySelectorAll('#ranges .range')].map(range => { const bar = range.querySelector('.bar'); \
        return [range.innerText.split('\\n')[0].trim(), bar.getAttribute('role'), bar.getAttribute('aria-label'), [...bar.children].map(part => [part.className, \
        Math.round(100 * part.getBoundingClientRect().width / bar.clientWidth), getComputedStyle(part).height !== '0px'])]; })").await;
    let expected = json!([
        ["10.77.0.0/21", "img", "53 percent of 10.77.0.0/21 is taken", [["held", 41, true], ["reserved", 13, true]]],
        ["fd77::/114", "img", "20 percent of fd77::/114 is taken", [["held", 20, true]]],
    ]);
    assert_eq!(bars, expected);
    let lines = |part: &str| {
        format!("[...document.querySelectorAll('#{part} li')].map(line => line.innerText.replace(/\\s+/g, ' ').trim())")
    };
    let certificates = browser.value(&lines("certificates")).await;
    let certificates: Vec<&str> = certificates.as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    let [authority, ending] = certificates[..] else { panic!("one node's certificate ends soon: {certificates:?}") };
    assert!(authority.starts_with("authority ") && authority.ends_with(" left"), "{authority}");
    assert!(ending.starts_with("rostock-3 ") && ending.ends_with(" left"), "{ending}");
    let joins = browser.value(&lines("joins")).await.to_string();
    for words in ["edge, 20 joins left (", "hub hub-3, 1 join left ("] {
        assert!(joins.contains(words), "{words}: {joins}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_can_be_read_in_the_light_and_in_the_dark_and_on_a_narrow_screen() {
    let cloud = Cloud::with("reserved = [\"10.77.3.0/24\"]\ncluster_ranges = [\"10.77.0.0/21\", \"fd77::/114\"]\n[page]\nlisten = [\"127.0.0.1:0\"]").await;
    // After five of seven days without a renewal, the node's certificate ends soon.
    cloud.node("edge", "rostock-3").await;
    cloud.clock.advance(5 * 86_400);
    let cloud = Arc::new(cloud);
    let mut nodes = vec![
        connected(&cloud, "hub", "hub-1", None, with_traffic(report(11, 12, &[]), 19_000_000, 170_000_000)).await,
        connected(&cloud, "hub", "hub-2", None, report(12, 12, &[])).await,
        connected(&cloud, "cloud", "cloud-1", None, report(2, 2, &[])).await,
    ];
    let sites = ["berlin", "hamburg", "leipzig", "munich", "rostock", "stuttgart"];
    for (index, site) in sites.iter().enumerate() {
        for (number, community) in [(1, "cameras"), (2, "sensors_cameras")] {
            let name = format!("{site}-{number}");
            let obstacle = "ufw drops forwarded packets of pods: ufw route allow in on ecni0";
            let obstacles: &[&str] = if (index, number) == (3, 2) { &[obstacle] } else { &[] };
            let up = if (index, number) == (1, 1) { 3 } else { 4 };
            let index = index as u32;
            let reported = with_traffic(report(up, 4, obstacles), 900 * 12_u64.pow(index), 400 * 9_u64.pow(index));
            nodes.push(connected(&cloud, "edge", &name, Some(community), reported).await);
        }
    }
    // One node that was connected, and one that never was.
    let gone = nodes.remove(9);
    drop(gone);
    cloud.token_with(json!({"role": "edge", "node": null, "ttl_seconds": 3600, "uses": 20})).await;
    cloud.token("hub", Some("hub-3")).await;
    let at = cloud.clone();
    with_browser(|browser: Arc<Browser>| async move {
        sign_in(&browser, &at).await;
        browser.wait(&row_says("rostock-3", "never")).await;
        browser.wait("document.getElementById('figures').innerText.includes('2 nodes not connected')").await;
        segments_joins_and_certificates(&browser).await;
        browser.prefer("prefers-reduced-motion", "reduce").await;
        assert_eq!(browser.value("getComputedStyle(document.querySelector('.live .mark')).animationName").await, "none");
        let mut grounds = Vec::new();
        for scheme in ["light", "dark"] {
            browser.prefer("prefers-color-scheme", scheme).await;
            grounds.push(browser.value("getComputedStyle(document.body).backgroundColor").await);
            let lowest = browser.value(&with_colours(CONTRASTS)).await;
            assert!(lowest[0][0].as_f64().unwrap() >= 4.5, "{scheme}: {lowest}");
            let picture = browser.picture().await;
            assert!(picture.starts_with(b"\x89PNG"));
            // `make screenshots` keeps these pictures.
            if let Some(directory) = std::env::var_os("EDGE_SCREENSHOTS") {
                std::fs::write(Path::new(&directory).join(format!("page-{scheme}.png")), picture).unwrap();
            }
        }
        assert_ne!(grounds[0], grounds[1]);
        // Every control has a name, and no level of headings is left out.
        let nameless = "[...document.querySelectorAll('button, input, select, [role=button]')].filter(control => control.checkVisibility() \
            && !(control.innerText || control.getAttribute('aria-label') || (control.labels && control.labels.length))).length";
        assert_eq!(browser.value(nameless).await, 0);
        let landmarks = "['header', 'main:not([hidden])', 'nav', '[role=search]'].map(one => document.querySelectorAll(one).length)";
        assert_eq!(browser.value(landmarks).await, json!([1, 1, 1, 1]));
        // On a narrow screen only the tables scroll sideways.
        browser.resize(360, 800).await;
        browser.wait("innerWidth < 520").await;
        assert_eq!(browser.value("document.documentElement.scrollWidth <= innerWidth").await, true);
        assert_eq!(browser.complaints().await, [""; 0]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_nodes_are_shown_by_pages_and_found_by_a_search() {
    const NODES: u32 = 5000;
    let cloud = Cloud::with_state("cluster_ranges = [\"10.64.0.0/10\"]\n[page]\nlisten = [\"127.0.0.1:0\"]", |state| {
        std::fs::create_dir(state).unwrap();
        let state = state.to_owned();
        // The function runs its own runtime, so it needs a separate thread.
        std::thread::spawn(move || stored_edges::fill(&state, NODES).unwrap()).join().unwrap();
    })
    .await;
    let cloud = Arc::new(cloud);
    let at = cloud.clone();
    with_browser(|browser: Arc<Browser>| async move {
        sign_in(&browser, &at).await;
        assert_eq!(browser.value("document.getElementById('shown').innerText").await, "5,000 nodes");
        assert_eq!(browser.value("document.querySelectorAll('#node-rows tr').length").await, 50);
        assert_eq!(browser.value("document.getElementById('page-number').innerText").await, "Page 1 of 100");
        // The document stays small, however many nodes there are.
        let elements = browser.value("document.querySelectorAll('*').length").await;
        assert!(elements.as_u64().unwrap() < 2500, "{elements} elements");
        browser.value("document.getElementById('next').click()").await;
        browser.wait(&row_says("node-00050", "never")).await;
        browser.value("document.getElementById('filter-text').focus()").await;
        browser.press("node-04321".chars()).await;
        browser.wait("document.getElementById('shown').innerText === '1 of 5,000 nodes'").await;
        browser.wait(&row_says("node-04321", "never")).await;
        assert_eq!(browser.complaints().await, [""; 0]);
    })
    .await;
}
