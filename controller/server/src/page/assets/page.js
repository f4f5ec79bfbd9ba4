// The operator's page. What nodes report is hostile: it becomes text (textContent) or an attribute
// by name, never HTML, and the Content-Security-Policy forbids the rest.
"use strict";
(() => {
  // Limits. What is beyond them is counted in words.
  const ROWS = 50; // nodes on a page of the table, and communities
  const GROUPS = 12; // groups of the map; the smaller ones are one more group
  const DOTS = 60; // marks in a group; if it has more nodes, the marks show their shares
  const LISTED = 8; // problems, certificates and joins that are listed
  const CHOICES = 200; // communities in the filter
  // Seconds between looks, and the longest time between attempts when the controller is away.
  const INTERVAL = 3, LONGEST = 30, PATIENCE = 30;
  const STATES = { away: "not connected", problem: "problem", ok: "connected" };
  const ORDER = ["away", "problem", "ok"];
  const KEY = "edge-cni-credential";

  const byId = (id) => document.getElementById(id);
  const state = {
    credential: "", tag: null, data: null, skew: 0, heardAt: 0, lost: false, retryAt: 0,
    sort: { column: "State", descending: false }, page: 0, open: new Set(), allProblems: false, session: 0,
  };

  function element(name, attributes, ...children) {
    const made = name.includes(":")
      ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4))
      : document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (typeof value === "function") made.addEventListener(key, value);
      else if (value !== undefined && value !== null && value !== false) made.setAttribute(key, value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }
  const many = (count, one, more = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : more}`;
  const number = (count) => (count > 1e12 ? "over a trillion" : count.toLocaleString("en"));
  // A number of bytes with two or three digits; a node may report any number.
  function bytes(count) {
    const units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let unit = 0, scaled = count;
    for (; scaled >= 1000 && unit < units.length - 1; unit += 1) scaled /= 1000;
    const digits = unit && scaled < 10 ? (Math.floor(scaled * 10) / 10).toFixed(1) : Math.floor(scaled).toLocaleString("en");
    return `${digits} ${units[unit]}`;
  }
  const rates = ({ received_per_second: received, sent_per_second: sent }) => `${bytes(received)}/s in, ${bytes(sent)}/s out`;
  const percent = (part, whole) => (whole ? Math.min(100, (part / whole) * 100) : 0);
  const controllerNow = () => Date.now() / 1000 + state.skew;

  function span(seconds) {
    const s = Math.max(0, Math.floor(seconds));
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min`;
    if (s < 172800) return `${Math.floor(s / 3600)} h`;
    return `${Math.floor(s / 86400)} d`;
  }
  function moment(seconds, text) {
    const date = new Date(seconds * 1000);
    if (Number.isNaN(date.getTime())) return text;
    return element("time", { datetime: date.toISOString(), title: date.toLocaleString() }, text);
  }

  // ---- The session

  function signedOut(why) {
    state.session += 1;
    Object.assign(state, { credential: "", tag: null, data: null, lost: false });
    sessionStorage.removeItem(KEY);
    for (const id of ["overview", "sign-out", "skip"]) byId(id).hidden = true;
    byId("sign-in").hidden = false;
    byId("version").textContent = "";
    byId("sign-in-error").textContent = why;
    byId("credential").value = "";
    show("idle", "");
    document.title = "Sign in – edge-cni";
    byId("credential").focus();
  }
  function signIn(credential) {
    // Another session begins with nothing of the one before.
    Object.assign(state, { credential: credential.trim().replace(/^.*#/, ""), tag: null, data: null, lost: false, heardAt: 0 });
    state.session += 1;
    byId("sign-in-error").textContent = "";
    // A header takes visible ASCII alone.
    if (!/^[!-~]+$/.test(state.credential)) return signedOut("This is no credential: it has 43 letters, digits, - and _.");
    show("idle", "Connecting");
    look(state.session, 0);
  }
  byId("sign-in-form").addEventListener("submit", (event) => {
    event.preventDefault();
    signIn(byId("credential").value);
  });
  byId("sign-out").addEventListener("click", () => signedOut(""));

  // ---- Looking again and again

  async function look(session, failures) {
    if (session !== state.session) return;
    const begun = performance.now();
    let wait = INTERVAL, failed = 0;
    try {
      const headers = { authorization: `Bearer ${state.credential}` };
      if (state.tag) headers["if-none-match"] = state.tag;
      const response = await fetch("data", { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE * 1000) });
      if (session !== state.session) return;
      if (response.status === 401) {
        return signedOut("The session has ended, or the credential is wrong. edge-controller page prints a new link.");
      }
      if (response.status !== 200 && response.status !== 304) throw new Error(`status ${response.status}`);
      const data = response.status === 200 ? await response.json() : null;
      if (session !== state.session) return;
      const time = Number(response.headers.get("edge-controller-time"));
      if (time) state.skew = time - Date.now() / 1000;
      heard(data, response.headers.get("etag"));
      // A large network or a slow way is asked less often: a tenth of the time at most is work.
      wait = Math.min(60, Math.max(INTERVAL, ((performance.now() - begun) / 1000) * 10));
    } catch (error) {
      if (session !== state.session) return;
      failed = failures + 1;
      wait = Math.min(LONGEST, 2 ** (failed - 1));
      state.retryAt = Date.now() + wait * 1000;
      if (!state.lost) announce("Connection to the controller lost. What is shown is old.");
      state.lost = true;
      console.info("no data:", error);
    }
    tick();
    await pause(wait);
    look(session, failed);
  }
  // Ends early when the page is seen again; a page that nobody sees does not ask.
  function pause(seconds) {
    return new Promise((done) => {
      const check = () => {
        if (document.hidden) return;
        document.removeEventListener("visibilitychange", check);
        done();
      };
      setTimeout(() => {
        document.addEventListener("visibilitychange", check);
        check();
      }, seconds * 1000);
    });
  }
  function heard(data, tag) {
    const first = state.data === null;
    if (state.lost) announce("Connected to the controller again.");
    Object.assign(state, { heardAt: Date.now(), lost: false });
    if (first && data) {
      sessionStorage.setItem(KEY, state.credential);
      const typed = byId("sign-in").contains(document.activeElement);
      byId("sign-in").hidden = true;
      for (const id of ["overview", "sign-out", "skip"]) byId(id).hidden = false;
      if (typed) byId("nodes").focus({ preventScroll: true });
    }
    if (data) {
      prepare(data);
      if (!first) announceChanges(state.data, data);
      Object.assign(state, { data, tag });
    }
    if (state.data) render();
  }
  function prepare(data) {
    for (const node of data.nodes) {
      node.state = !node.connected ? "away" : node.problems.length ? "problem" : "ok";
      node.group = node.role === "edge" ? node.communities.join(" + ") : node.role;
      node.text = [node.name, node.role, node.version || "", ...node.communities, ...node.segments, ...node.addresses, ...node.problems]
        .join("\n").toLowerCase();
    }
  }
  function announceChanges(before, after) {
    const known = new Map(before.nodes.map((node) => [node.name, node.state]));
    const changed = after.nodes.filter((node) => known.get(node.name) !== node.state);
    if (!changed.length) return;
    const named = changed.slice(0, 3).map((node) => `${node.name}: ${STATES[node.state]}`);
    if (changed.length > 3) named.push(`and ${changed.length - 3} more nodes changed`);
    announce(named.join(", "));
  }
  function announce(text) { byId("announce").textContent = text; }
  function show(kind, text) {
    byId("live").dataset.state = kind;
    if (byId("live-text").textContent !== text) byId("live-text").textContent = text;
  }
  function tick() {
    if (state.lost) {
      const next = Math.max(0, Math.ceil((state.retryAt - Date.now()) / 1000));
      const old = state.heardAt ? ` What is shown is ${span((Date.now() - state.heardAt) / 1000)} old.` : "";
      show("lost", `Connection lost.${old} Next attempt in ${next} s`);
    } else if (state.data) {
      show("live", `Updated ${span((Date.now() - state.heardAt) / 1000)} ago`);
    }
  }
  setInterval(tick, 1000);

  // ---- What is shown

  // Replaces the children, and gives the focus back to what has the same data-key.
  function replace(parent, children) {
    const inside = parent.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
    parent.replaceChildren(...children);
    if (inside !== undefined) {
      [...parent.querySelectorAll("[data-key]")].find((found) => found.dataset.key === inside)?.focus({ preventScroll: true });
    }
  }
  // Draws a part again only if what it shows has changed, so that nobody's place is lost.
  const drawn = new Map();
  function part(name, shown, draw) {
    const text = JSON.stringify(shown);
    if (drawn.get(name) === text) return;
    drawn.set(name, text);
    draw();
  }
  function mark(kind) {
    const shape = kind === "ok" ? element("svg:circle", { r: 5, class: "ok" })
      : kind === "problem" ? element("svg:path", { d: "M0-6 6 5H-6Z", class: "problem" })
      : element("svg:g", {}, element("svg:circle", { r: 4.5, class: "away" }), element("svg:path", { d: "M-3 3 3-3", class: "away" }));
    return shape;
  }
  function stateText(kind, text) {
    return element("span", { class: `state ${kind}` },
      element("svg:svg", { viewBox: "-7 -7 14 14", "aria-hidden": "true" }, mark(kind)), text);
  }
  function tunnels(nodes) {
    const sum = { up: 0, wanted: 0 };
    for (const node of nodes) {
      if (!node.connected || !node.tunnels) continue;
      sum.up += node.tunnels.up;
      sum.wanted += node.tunnels.wanted;
    }
    return sum;
  }
  // The traffic of all nodes that report it; null if none does.
  function traffic(nodes) {
    const reported = nodes.map((node) => node.traffic).filter(Boolean);
    if (!reported.length) return null;
    const sum = (key) => reported.reduce((all, one) => all + one[key], 0);
    return { received_per_second: sum("received_per_second"), sent_per_second: sum("sent_per_second") };
  }
  function render() {
    const { data } = state;
    byId("version").textContent = data.version;
    const troubled = data.nodes.filter((node) => node.problems.length);
    const all = data.problems.length + troubled.length;
    document.title = all ? `(${all}) edge-cni` : "edge-cni";
    figures(data, all);
    problems(data, troubled);
    map(data);
    ranges(data);
    certificates(data);
    joins(data);
    communityChoices(data);
    nodeTable();
    communityTable(data);
    tick();
  }

  function figures(data, problemCount) {
    const connected = data.nodes.filter((node) => node.connected).length;
    const away = data.nodes.length - connected;
    const { up, wanted } = tunnels(data.nodes), flow = traffic(data.nodes);
    const ending = data.nodes.filter((node) => node.certificate_ends_soon).length;
    const fullest = data.ranges.map((range) => percent(range.segments - range.free, range.segments)).sort((a, b) => b - a)[0] || 0;
    const rows = [
      ["Nodes connected", connected, `of ${data.nodes.length.toLocaleString("en")}`, away ? ["away", `${many(away, "node")} not connected`] : ["ok", "all of them"]],
      ["Tunnels up", up, `of ${wanted.toLocaleString("en")}`, up < wanted ? ["problem", `${(wanted - up).toLocaleString("en")} down`] : ["ok", wanted ? "all of them" : "none reported"]],
      // What one node sends another one receives, so only one of both counts.
      ["Traffic", flow ? `${bytes(flow.sent_per_second)}/s` : "–", "", ["ok", flow ? "in all tunnels" : "none reported"]],
      ["Segments taken", `${Math.floor(fullest)} %`, "", fullest >= 90 ? ["problem", "few are left"] : ["ok", data.ranges.length > 1 ? "in the fullest range" : "enough are free"]],
      ["Certificates ending", ending, "", ending ? ["problem", "should have been renewed"] : ["ok", "none soon"]],
      ["Problems", problemCount, "", problemCount ? ["problem", "see below"] : ["ok", "none"]],
    ];
    part("figures", rows, () => byId("figures").replaceChildren(...rows.map(([label, value, of, [kind, note]]) =>
      element("li", {},
        element("span", { class: "label" }, label),
        element("span", { class: "value" }, value.toLocaleString("en"), of ? element("span", { class: "of" }, ` ${of}`) : null),
        element("span", { class: `note ${kind}` }, note)))));
  }

  function problems(data, troubled) {
    const shownNodes = state.allProblems ? troubled.slice(0, 100) : troubled.slice(0, LISTED);
    const rows = shownNodes.map((node) => [node.name, node.problems]);
    byId("problems").hidden = !data.problems.length && !troubled.length;
    part("problems", [data.problems, rows, troubled.length, state.allProblems], () => {
      const lines = data.problems.map((text) => element("li", {}, text));
      for (const [name, texts] of rows) lines.push(element("li", {}, nodeLink(name, `problem:${name}`), `: ${texts.join("; ")}`));
      const more = troubled.length - rows.length;
      if (more > 0) {
        const expand = () => { state.allProblems = true; render(); };
        lines.push(element("li", { class: "muted" }, `${many(more, "more node")} with problems. `,
          state.allProblems ? "Filter the nodes below by their state."
            : element("button", { type: "button", class: "plain", "data-key": "all", click: expand }, "Show more")));
      }
      replace(byId("problem-list"), lines);
    });
  }
  function nodeLink(name, key) {
    return element("button", { type: "button", class: "plain", "data-key": key, click: () => filterBy({ text: name, open: name }) }, name);
  }

  // ---- The map: groups of nodes below the cloud, with the tunnels between them summed up

  function map(data) {
    const groups = new Map();
    for (const node of data.nodes) {
      if (!groups.has(node.group)) groups.set(node.group, []);
      groups.get(node.group).push(node);
    }
    const cloud = [...(groups.get("hub") || []), ...(groups.get("cloud") || [])];
    const hubs = (groups.get("hub") || []).length;
    groups.delete("hub");
    groups.delete("cloud");
    let edges = [...groups].map(([name, nodes]) => ({ name, nodes, title: name || "no community" }));
    edges.sort((a, b) => b.nodes.length - a.nodes.length || (a.name < b.name ? -1 : 1));
    if (edges.length > GROUPS) {
      const rest = edges.slice(GROUPS - 1);
      edges = [...edges.slice(0, GROUPS - 1),
        { name: null, nodes: rest.flatMap((group) => group.nodes), title: `${rest.length} more groups` }];
    }
    const dots = (nodes) => ORDER.map((kind) => nodes.filter((node) => node.state === kind).length);
    const seen = edges.map((group) => [group.name, group.title, dots(group.nodes), tunnels(group.nodes), traffic(group.nodes)]);
    part("map", [seen, dots(cloud), tunnels(cloud), traffic(cloud), hubs], () => drawMap(edges, cloud, hubs));
  }
  const ROW = 244; // height of a row of groups
  function drawMap(edges, cloud, hubs) {
    const columns = Math.min(4, Math.max(1, edges.length)), width = 860, cell = width / columns, cloudHeight = 104;
    const rows = Math.ceil(edges.length / columns);
    const height = cloudHeight + 30 + rows * ROW;
    const links = element("svg:g", { "aria-hidden": "true" });
    const shapes = [];
    const title = hubs ? many(hubs, "hub") : "no hub";
    const cloudWidth = Math.min(width - 20, Math.max(360, 60 + Math.min(cloud.length, DOTS / 2) * 22));
    shapes.push(group({
      x: width / 2, y: 8 + cloudHeight / 2, nodes: cloud, label: "Cloud", most: DOTS / 2, filter: { role: hubs ? "hub" : "cloud" }, key: "map:cloud",
      area: element("svg:rect", { class: "area", x: -cloudWidth / 2, y: -cloudHeight / 2, width: cloudWidth, height: cloudHeight, rx: 14 }),
      place: (index, count) => [(index - (count - 1) / 2) * 22, 4],
      labels: [["name", -26, cloud.length > hubs ? `Cloud: ${title}, ${many(cloud.length - hubs, "cloud node")}` : `Cloud: ${title}`], ["small", 36, [summary(cloud), carried(cloud)].filter(Boolean).join(", ")]],
    }));
    edges.forEach((one, index) => {
      const row = Math.floor(index / columns), last = edges.length - row * columns;
      const inRow = Math.min(columns, last), column = index % columns;
      const x = width / 2 + (column - (inRow - 1) / 2) * cell, y = cloudHeight + 120 + row * ROW;
      const drawnCount = Math.min(one.nodes.length, DOTS);
      const radius = Math.max(34, Math.min(66, 13 + 8.3 * Math.sqrt(drawnCount)));
      const { up, wanted } = tunnels(one.nodes);
      const kind = wanted === 0 ? "away" : up < wanted ? "problem" : "ok";
      const from = [width / 2 + (x - width / 2) * 0.25, cloudHeight + 8], to = y - radius;
      // To lower rows a link goes between the columns, not through the groups above.
      const gutters = Array.from({ length: columns - 1 }, (_, at) => width / 2 + (at + 1 - columns / 2) * cell);
      const gutter = gutters.sort((a, b) => Math.abs(a - x) - Math.abs(b - x) || Math.abs(a - width / 2) - Math.abs(b - width / 2))[0];
      const curve = (x1, y1, x2, y2) => `C${x1} ${(y1 + y2) / 2} ${x2} ${(y1 + y2) / 2} ${x2} ${y2}`;
      const d = row === 0 ? curve(...from, x, to) : `${curve(...from, gutter, cloudHeight + 60)}V${to - 40}${curve(gutter, to - 40, x, to)}`;
      const link = element("svg:path", { class: `link ${kind}`, d: `M${from[0]} ${from[1]}${d}` });
      const flow = traffic(one.nodes);
      // Ten times the traffic above 1 kB/s makes a line one step wider.
      if (flow) link.style.strokeWidth = 2.5 + Math.min(7, Math.max(0, Math.log10((flow.received_per_second + flow.sent_per_second) / 1000 || 1)));
      links.append(link);
      shapes.push(group({
        x, y, nodes: one.nodes, label: one.name === null ? one.title : one.name ? `Community ${one.title}` : "Edges of no community", most: DOTS,
        filter: one.name === null ? { role: "edge" } : { role: "edge", community: one.name.split(" + ")[0] }, key: `map:${one.title}`,
        area: element("svg:circle", { class: "area", r: radius }),
        place: spread,
        labels: [["name", radius + 20, shorten(one.title, 26)], ["small", radius + 37, summary(one.nodes)],
          ["small", radius + 54, wanted ? `${up.toLocaleString("en")} of ${wanted.toLocaleString("en")} tunnels up` : "no tunnels reported"],
          ["small", radius + 71, carried(one.nodes)]],
      }));
    });
    replace(byId("map"), [element("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-labelledby": "map-title" }, links, ...shapes)]);
  }
  // The states of a group's nodes, the worst first. Of more than `most` nodes their shares, at least
  // one mark for each state that there is.
  function marks(nodes, most) {
    const counts = ORDER.map((kind) => nodes.filter((node) => node.state === kind).length);
    const drawnCounts = nodes.length <= most ? counts : counts.map((count) => (count ? Math.max(1, Math.round((count / nodes.length) * most)) : 0));
    return ORDER.flatMap((kind, index) => Array(drawnCounts[index]).fill(kind));
  }
  // A ring for a few; a sunflower, which is even for any number, for more.
  function spread(index, count) {
    const few = count <= 6;
    const radius = count === 1 ? 0 : few ? 14 : 8.3 * Math.sqrt(index + 0.4);
    const angle = few ? (index / count) * 2 * Math.PI - Math.PI / 2 : index * 2.39996;
    return [radius * Math.cos(angle), radius * Math.sin(angle)];
  }
  function group({ x, y, nodes, label, most, filter, key, area, place, labels }) {
    const { up, wanted } = tunnels(nodes);
    const go = () => filterBy(filter);
    const press = (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      go();
    };
    const made = element("svg:g", {
      role: "button", tabindex: 0, transform: `translate(${x} ${y})`, "data-key": key, click: go, keydown: press,
      "aria-label": `${label}: ${[summary(nodes), `${up} of ${wanted} tunnels up`, carried(nodes)].filter(Boolean).join(", ")}. Show its nodes in the table.`,
    }, area);
    const kinds = marks(nodes, most);
    kinds.forEach((kind, index) => {
      const [dx, dy] = place(index, kinds.length);
      made.append(element("svg:g", { transform: `translate(${dx.toFixed(1)} ${dy.toFixed(1)})`, "aria-hidden": "true" }, mark(kind)));
    });
    for (const [kind, at, text] of labels) if (text) made.append(element("svg:text", { class: kind, y: at, "aria-hidden": "true" }, text));
    return made;
  }
  const carried = (nodes) => {
    const flow = traffic(nodes);
    return flow ? rates(flow) : "";
  };
  const shorten = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
  function summary(nodes) {
    const connected = nodes.filter((node) => node.connected).length;
    return `${connected.toLocaleString("en")} of ${nodes.length.toLocaleString("en")} connected`;
  }

  // ---- Segments, certificates, joins

  function ranges(data) {
    part("ranges", data.ranges, () => byId("ranges").replaceChildren(...data.ranges.map((range) => {
      const { segments, free, held, quarantined } = range;
      const taken = segments - free, reserved = Math.max(0, taken - held - quarantined);
      const bar = element("div", { class: "bar", role: "img", "aria-label": `${Math.floor(percent(taken, segments))} percent of ${range.range} is taken` });
      for (const [kind, count] of [["held", held], ["quarantined", quarantined], ["reserved", reserved]]) {
        if (!count) continue;
        const filled = element("span", { class: kind });
        filled.style.width = `${Math.max(1, percent(count, segments))}%`;
        bar.append(filled);
      }
      const words = [`${number(held)} held`, quarantined ? `${number(quarantined)} in quarantine (hatched)` : "",
        reserved ? `${number(reserved)} reserved (striped)` : "", `${number(free)} free of ${number(segments)} (/${range.prefix})`];
      return element("div", { class: "range" },
        element("div", { class: "head" }, element("span", { class: "mono" }, range.range), element("span", {}, `${Math.floor(percent(taken, segments))} % taken`)),
        bar, element("p", { class: "muted" }, words.filter(Boolean).join(", ")));
    })));
  }
  function list(title, rows, more) {
    const made = [];
    if (title) made.push(element("h3", {}, title));
    made.push(element("ul", { class: "facts" }, ...rows.map(([left, right]) => element("li", {}, element("span", {}, left), element("span", { class: "muted" }, right)))));
    if (more > 0) made.push(element("p", { class: "muted" }, `and ${many(more, "more", "more")}`));
    return made;
  }
  const until = (end) => {
    const left = end - controllerNow();
    return moment(end, left > 0 ? `${span(left)} left` : `ended ${span(-left)} ago`);
  };
  const minute = () => Math.floor(controllerNow() / 60);
  function certificates(data) {
    const ending = data.nodes.filter((node) => node.certificate_ends_soon).sort((a, b) => a.certificate_not_after - b.certificate_not_after);
    const shown = ending.slice(0, LISTED).map((node) => [node.name, node.certificate_not_after]);
    part("certificates", [shown, ending.length, data.authority_not_after, minute()], () => replace(byId("certificates"), [
      ...list("", [["authority", until(data.authority_not_after)]], 0),
      ...(shown.length ? list("Nodes whose certificate ends soon", shown.map(([name, end]) => [nodeLink(name, `certificate:${name}`), until(end)]), ending.length - shown.length)
        : [element("p", { class: "muted" }, "No node's certificate ends soon.")]),
    ]));
  }
  function joins(data) {
    const latest = data.nodes.filter((node) => node.joined_at).sort((a, b) => b.joined_at - a.joined_at).slice(0, 5).map((node) => [node.name, node.joined_at]);
    const tokens = data.tokens.slice(0, LISTED), more = data.tokens.length - tokens.length + data.more_tokens;
    part("joins", [latest, tokens, more, minute()], () => replace(byId("joins"), [
      ...(tokens.length ? list("Open join tokens", tokens.map((token) => [
        `${token.role}${token.node ? ` ${token.node}` : ""}, ${many(token.left, "join")} left (${token.id})`, until(token.expires_at)]), more)
        : [element("p", { class: "muted" }, "No join token is open.")]),
      ...(latest.length ? list("Latest", latest.map(([name, at]) => [nodeLink(name, `join:${name}`), moment(at, `${span(controllerNow() - at)} ago`)]), 0) : []),
    ]));
  }

  // ---- The tables

  const text = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  const COLUMNS = {
    Node: (a, b) => text(a.name, b.name),
    Role: (a, b) => text(a.role, b.role),
    State: (a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state),
    "Last seen": (a, b) => (b.connected ? Infinity : b.last_seen || 0) - (a.connected ? Infinity : a.last_seen || 0) || 0,
    Tunnels: (a, b) => lacking(b) - lacking(a),
    Traffic: (a, b) => flowing(b) - flowing(a),
    Communities: (a, b) => text(a.communities.join(), b.communities.join()),
    Segments: (a, b) => b.segments.length - a.segments.length || text(a.segments.join(), b.segments.join()),
    Certificate: (a, b) => a.certificate_not_after - b.certificate_not_after,
    Version: (a, b) => text(a.version || "", b.version || ""),
  };
  const flowing = (node) => (node.traffic ? node.traffic.received_per_second + node.traffic.sent_per_second : -1);
  const lacking = (node) => (node.tunnels ? node.tunnels.wanted - node.tunnels.up : -1);

  for (const column of Object.keys(COLUMNS)) {
    const sort = () => {
      const same = state.sort.column === column;
      state.sort = { column, descending: same && !state.sort.descending };
      state.page = 0;
      nodeTable();
    };
    byId("node-head").append(element("th", { scope: "col", "data-column": column },
      element("button", { type: "button", click: sort }, column, element("span", { "aria-hidden": "true", class: "arrow" }))));
  }
  function chosen() {
    const wanted = byId("filter-text").value.trim().toLowerCase(), role = byId("filter-role").value;
    const kind = byId("filter-state").value, community = byId("filter-community").value;
    return state.data.nodes.filter((node) => (!wanted || node.text.includes(wanted)) && (!role || node.role === role)
      && (!kind || node.state === kind) && (!community || node.communities.includes(community)));
  }
  function nodeTable() {
    if (!state.data) return;
    const { column, descending } = state.sort;
    const order = (a, b) => (descending ? COLUMNS[column](b, a) : COLUMNS[column](a, b)) || text(a.name, b.name);
    const nodes = chosen().sort(order);
    const pages = Math.max(1, Math.ceil(nodes.length / ROWS));
    state.page = Math.min(state.page, pages - 1);
    const shown = nodes.slice(state.page * ROWS, (state.page + 1) * ROWS);
    for (const head of byId("node-head").children) {
      const sorted = head.dataset.column === column;
      if (sorted) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
      head.querySelector(".arrow").textContent = sorted ? (descending ? " ▼" : " ▲") : "";
    }
    part("nodes", [shown.map(({ text: _, ...node }) => node), [...state.open], minute()], () =>
      replace(byId("node-rows"), shown.flatMap(nodeRows)));
    const total = state.data.nodes.length;
    const words = nodes.length === total ? many(total, "node") : `${nodes.length.toLocaleString("en")} of ${many(total, "node")}`;
    if (byId("shown").textContent !== words) byId("shown").textContent = words;
    byId("page-number").textContent = `Page ${state.page + 1} of ${pages}`;
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = state.page >= pages - 1;
  }
  function nodeRows(node) {
    const open = state.open.has(node.name);
    const toggle = () => {
      if (!state.open.delete(node.name)) state.open.add(node.name);
      nodeTable();
    };
    const seen = node.connected ? "now" : node.last_seen !== null ? moment(node.last_seen, `${span(controllerNow() - node.last_seen)} ago`)
      : node.never_connected ? "never" : "unknown";
    const first = node.segments.slice(0, 2), more = node.segments.length - first.length;
    const row = element("tr", {},
      element("th", { scope: "row" }, element("button", {
        type: "button", class: "plain", "data-key": node.name, "aria-expanded": String(open), click: toggle }, node.name)),
      element("td", {}, node.role),
      element("td", {}, stateText(node.state, node.state === "problem" && node.problems.length > 1 ? `${node.problems.length} problems` : STATES[node.state])),
      element("td", { class: "number" }, seen),
      element("td", { class: "number" }, node.tunnels ? `${node.tunnels.up} of ${node.tunnels.wanted}` : "–"),
      element("td", { class: "number" }, node.traffic ? rates(node.traffic) : "–"),
      element("td", {}, node.communities.join(", ") || "–"),
      element("td", {}, element("span", { class: "mono" }, first.join(" ") || "–"), more > 0 ? ` and ${more} more` : null),
      element("td", { class: "number" }, until(node.certificate_not_after), node.certificate_ends_soon ? " (soon)" : null),
      element("td", {}, node.version || "–"));
    if (!open) return [row];
    const facts = [
      ["Problems", node.problems.length ? element("ul", {}, ...node.problems.map((one) => element("li", {}, one))) : "none"],
      ["Addresses", element("span", { class: "mono" }, node.addresses.join("  ") || "–")],
      ["Segments", element("span", { class: "mono" }, node.segments.join("  ") || "–")],
      ["Traffic", node.traffic ? `${bytes(node.traffic.received)} received, ${bytes(node.traffic.sent)} sent since the agent started` : "not reported here"],
      ["Joined", node.joined_at ? moment(node.joined_at, new Date(node.joined_at * 1000).toLocaleString()) : "–"],
      ["Certificate", moment(node.certificate_not_after, `until ${new Date(node.certificate_not_after * 1000).toLocaleString()}`)],
    ];
    if (node.replica) facts.push(["Connected to", node.replica]);
    return [row, element("tr", { class: "details" }, element("td", { colspan: Object.keys(COLUMNS).length },
      element("dl", {}, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]))))];
  }
  function communityChoices(data) {
    const names = data.communities.map((community) => community.name).slice(0, CHOICES);
    const select = byId("filter-community");
    // One that a group of the map has chosen stays in the list, however many there are.
    if (select.value && !names.includes(select.value)) names.push(select.value);
    part("choices", names, () => {
      const before = select.value;
      select.replaceChildren(element("option", { value: "" }, "all"), ...names.map((name) => element("option", {}, name)));
      select.value = before;
    });
  }
  function communityTable(data) {
    const members = new Map(data.communities.map((community) => [community.name, []]));
    for (const node of data.nodes) for (const name of node.communities) members.get(name)?.push(node);
    const rows = data.communities.map(({ name, members: count }) => {
      const nodes = members.get(name), { up, wanted } = tunnels(nodes);
      const connected = nodes.filter((node) => node.connected).length;
      const kind = connected < count ? "away" : nodes.some((node) => node.problems.length) ? "problem" : "ok";
      return { name, connected, count, up, wanted, kind, flow: carried(nodes) || "–" };
    }).sort((a, b) => ORDER.indexOf(a.kind) - ORDER.indexOf(b.kind) || text(a.name, b.name));
    const shown = rows.slice(0, ROWS);
    part("communities", [shown, rows.length], () => {
      replace(byId("community-rows"), shown.map((row) => element("tr", {},
        element("th", { scope: "row" }, element("button", {
          type: "button", class: "plain", "data-key": row.name, click: () => filterBy({ community: row.name }) }, row.name)),
        element("td", { class: "number" }, `${row.connected} of ${row.count}`),
        element("td", { class: "number" }, `${row.up} of ${row.wanted}`),
        element("td", { class: "number" }, row.flow),
        element("td", {}, stateText(row.kind, { away: "not all connected", problem: "problem", ok: "connected" }[row.kind])))));
      byId("more-communities").textContent = !rows.length ? "There are no communities." :
        rows.length > shown.length ? `${many(rows.length - shown.length, "more community", "more communities")}: search the nodes by its name.` : "";
    });
  }

  // ---- Filters

  function filterBy({ text: wanted = "", role = "", community = "", open }) {
    byId("filter-text").value = wanted;
    byId("filter-role").value = role;
    byId("filter-state").value = "";
    const select = byId("filter-community");
    if (community && ![...select.options].some((option) => option.value === community)) select.append(element("option", {}, community));
    select.value = community;
    if (open) state.open.add(open);
    state.page = 0;
    nodeTable();
    byId("nodes").focus({ preventScroll: true });
    byId("nodes").scrollIntoView();
  }
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("input", () => { state.page = 0; nodeTable(); });
  byId("filters").addEventListener("reset", () => setTimeout(() => { state.page = 0; nodeTable(); }));
  byId("previous").addEventListener("click", () => { state.page -= 1; nodeTable(); });
  byId("next").addEventListener("click", () => { state.page += 1; nodeTable(); });
  byId("skip").addEventListener("click", (event) => { event.preventDefault(); byId("nodes").focus(); });

  // The link's credential leaves the address at once, so that neither history nor screen keep it.
  function linked() {
    const fragment = location.hash.slice(1);
    if (fragment) history.replaceState(null, "", location.pathname);
    return fragment;
  }
  // A link that is opened in a tab with the page does not load it again.
  window.addEventListener("hashchange", () => {
    const fragment = linked();
    if (fragment) signIn(fragment);
  });
  const known = linked() || sessionStorage.getItem(KEY);
  if (known) signIn(known);
  else signedOut("");
})();
