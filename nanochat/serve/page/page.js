"use strict";
const STRINGS = {
  en: {
    newChat: "New chat", settings: "Settings", close: "Close", message: "Message", placeholder: "Ask anything",
    hint: "Enter to send · Shift + Enter for a new line · answers can be wrong",
    hello: "Your own model, from raw text to chat", intro: "Trained from scratch with nanochat. What you write goes to this server and nowhere else.",
    ideas: [["Say hello", "Who are you?"], ["Use the calculator", "What is 127 + 358?"], ["Spell a word", "How do you spell the word ocean?"], ["Tell me something", "Tell me about the sea."]],
    you: "You", model: "Model", send: "Send", stop: "Stop", edit: "Edit", copy: "Copy", copied: "Copied", again: "Regenerate", retry: "Try again",
    save: "Send", cancel: "Cancel", latest: "Jump to the latest message", dark: "Switch to dark", light: "Switch to light",
    other: "中文", otherLabel: "切换到中文", connecting: "connecting…", offline: "not reachable", locked: "needs a key",
    temperature: "Temperature", temperatureHelp: "Low: careful and repeatable. High: varied, sometimes odd.",
    topk: "Top-k", topkHelp: "Choose each token among the k likeliest ones. Off: among all.", off: "off",
    tokens: "Longest answer", tokensHelp: "An answer is cut after this many tokens.", unit: "tokens",
    system: "Instructions", systemHelp: "Sent to the model before your first message.", key: "API key",
    keyHelp: "Only for servers started with API keys. Forgotten when this tab closes.", reset: "Reset to defaults",
    stopped: "Stopped", cut: "Cut at the token limit", speed: (n, s) => `${n} tokens · ${s} tokens/s`, count: (n) => `${n} tokens`, calculator: "Calculator", refused: "refused",
    empty: "The model ended its turn without a word.",
    errors: {
      network: "The server cannot be reached. Is it still running?", key: "This server asks for an API key.",
      long: "The conversation no longer fits into the model's context. Start a new chat or shorten a message.",
      busy: (s) => `The server is busy. Try again in ${s} s.`, starting: "The server is starting or shutting down. Try again shortly.",
      model: "The server now has another model. Try again with it.", broken: "The answer broke off.", server: "Something failed on the server.",
      request: "The server refused the request.",
    },
  },
  zh: {
    newChat: "新对话", settings: "设置", close: "关闭", message: "消息", placeholder: "想问什么都可以",
    hint: "回车发送 · Shift + 回车换行 · 回答可能有误",
    hello: "你自己的模型，从原始文本到对话", intro: "用 nanochat 从零训练，你写的内容只会发到这台服务器。模型主要用英文训练，用英文提问效果更好。",
    ideas: [["打个招呼", "Who are you?"], ["用计算器", "What is 127 + 358?"], ["拼写单词", "How do you spell the word ocean?"], ["随便聊聊", "Tell me about the sea."]],
    you: "你", model: "模型", send: "发送", stop: "停止", edit: "编辑", copy: "复制", copied: "已复制", again: "重新生成", retry: "重试",
    save: "发送", cancel: "取消", latest: "跳到最新消息", dark: "切换到深色", light: "切换到浅色",
    other: "EN", otherLabel: "Switch to English", connecting: "连接中…", offline: "无法连接", locked: "需要密钥",
    temperature: "温度", temperatureHelp: "低：谨慎、稳定；高：多样，偶尔离谱。",
    topk: "Top-k", topkHelp: "每个词元只从最可能的 k 个中选取；关闭则不限制。", off: "关闭",
    tokens: "最长回答", tokensHelp: "回答到这个词元数就截断。", unit: "词元",
    system: "指令", systemHelp: "在第一条消息之前交给模型。", key: "API 密钥",
    keyHelp: "仅当服务器启用了密钥时需要；关闭标签页后即忘记。", reset: "恢复默认",
    stopped: "已停止", cut: "已达到词元上限", speed: (n, s) => `${n} 词元 · 每秒 ${s}`, count: (n) => `${n} 词元`, calculator: "计算器", refused: "已拒绝",
    empty: "模型没有说话就结束了这一轮。",
    errors: {
      network: "无法连接服务器，它还在运行吗？", key: "这个服务器需要 API 密钥。",
      long: "对话已超出模型的上下文长度。请开始新对话，或缩短某条消息。",
      busy: (s) => `服务器正忙，请在 ${s} 秒后重试。`, starting: "服务器正在启动或关闭，请稍后重试。",
      model: "服务器换了模型，请用新模型重试。", broken: "回答中途断开了。", server: "服务器出错了。", request: "服务器拒绝了这个请求。",
    },
  },
};
const DEFAULTS = { temperature: 0.8, topk: 50, tokens: 256, system: "" };
const $ = (id) => document.getElementById(id);
const store = (area, name, value) => {
  try {
    if (value === undefined) return JSON.parse(area.getItem(`nanochat.${name}`));
    area.setItem(`nanochat.${name}`, JSON.stringify(value));
  } catch { /* storage is off or holds something else: the page works without */ }
  return null;
};
const state = {
  lang: store(localStorage, "lang") || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en"),
  params: { ...DEFAULTS, ...store(localStorage, "params") },
  key: store(sessionStorage, "key") || "",
  turns: store(sessionStorage, "turns") || [],
  model: null, status: "wait", running: null, editing: -1, follow: true,
};
let t = STRINGS[state.lang];

/* ---- small DOM helpers: text is only ever set as text ---- */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("class", "icon"); svg.setAttribute("aria-hidden", "true"); use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}
function prose(text) {
  const parts = [];
  text.split(/```(?:[\w+-]*\n)?/).forEach((block, index) => {
    if (index % 2) { parts.push(el("pre", { tabindex: "0" }, el("code", {}, block.replace(/\n$/, "")))); return; }
    block.split(/`([^`\n]+)`/).forEach((piece, odd) => { if (piece) parts.push(odd % 2 ? el("code", {}, piece) : piece); });
  });
  return parts;
}
const action = (name, label, run) => el("button", { type: "button", onclick: run, "data-action": name }, icon(name), label);
function grow(area) { area.style.height = "auto"; area.style.height = `${area.scrollHeight}px`; }
function toast(text) {
  const node = $("toast");
  node.textContent = text; node.hidden = false;
  clearTimeout(toast.timer); toast.timer = setTimeout(() => { node.hidden = true; }, 1600);
}
function copyText(text) {
  if (navigator.clipboard) { navigator.clipboard.writeText(text).then(() => toast(t.copied), () => {}); return; }
  const area = el("textarea", { class: "sr" });  // plain http from another machine has no clipboard object
  area.value = text; document.body.append(area); area.select();
  if (document.execCommand("copy")) toast(t.copied);
  area.remove();
}

/* ---- drawing ---- */
function draw() {
  const log = $("log");
  $("welcome").hidden = state.turns.length > 0;
  log.replaceChildren(...state.turns.map((turn, index) => drawTurn(turn, index)));
  drawControls(); scroll();
  if (!state.running) store(sessionStorage, "turns", state.turns);
}
function drawTurn(turn, index) {
  const last = index === state.turns.length - 1, live = last && Boolean(state.running);
  const mine = turn.role === "user";
  const node = el("article", { class: `turn ${turn.role}${last ? " last" : ""}`, "aria-label": mine ? t.you : t.model });
  if (mine && state.editing === index) { node.append(drawEditor(turn, index)); return node; }
  const text = el("div", { class: "text" });
  const row = el("div", { class: "row" }, mine ? null : el("span", { class: "mark small" }, icon("mark")), text);
  if (mine || live || turn.content || turn.tools?.length || !turn.error) node.append(row);
  fill(text, turn, live);
  if (turn.error) node.append(drawError(turn));
  if (!live) node.append(drawBar(turn, index));
  return node;
}
function fill(text, turn, live) {
  const chips = (turn.tools || []).map((run) => el("li", { class: "chip", title: t.calculator }, icon("calc"),
    el("span", { class: "sr" }, t.calculator), run.result === null ? `${run.expression} (${t.refused})` : `${run.expression} = ${run.result}`));
  const quiet = !turn.content && !live && turn.role === "assistant" && !turn.error && !turn.stopped;
  text.replaceChildren(...(chips.length ? [el("ul", { class: "chips" }, ...chips)] : []),
    ...(turn.role === "user" ? [turn.content] : prose(turn.content)), ...(quiet ? [el("em", {}, t.empty)] : []),
    ...(live ? [el("span", { class: "caret", "aria-hidden": "true" })] : []));
}
function drawBar(turn, index) {
  const bar = el("div", { class: "bar" });
  const copy = action("copy", t.copy, () => copyText(turn.content));
  if (turn.role === "user") {
    bar.append(action("edit", t.edit, () => { stop(); state.editing = index; draw(); }), copy);
    return bar;
  }
  const meta = [turn.stopped && t.stopped, turn.cut && t.cut,
    turn.count && (turn.rate ? t.speed(turn.count, turn.rate) : t.count(turn.count))].filter(Boolean).join(" · ");
  if (!turn.error) bar.append(action("again", t.again, () => regenerate(index)));
  if (turn.content) bar.append(copy);
  bar.append(el("span", { class: "meta" }, meta));
  return bar;
}
function drawEditor(turn, index) {
  const area = el("textarea", { "aria-label": t.edit, rows: "1" });
  area.value = turn.content;
  const cancel = () => { state.editing = -1; draw(); };
  const save = () => { const text = area.value.trim(); if (text) { state.editing = -1; state.turns.length = index; ask(text); } };
  area.addEventListener("input", () => grow(area));
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") cancel();
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); save(); }
  });
  requestAnimationFrame(() => { grow(area); area.focus(); });
  return el("div", { class: "edit" }, area, el("div", {}, el("button", { class: "plain", type: "button", onclick: cancel }, t.cancel),
    el("button", { class: "solid", type: "button", onclick: save }, t.save)));
}
function drawError(turn) {
  const { kind, detail, seconds } = turn.error, words = t.errors[kind];
  const text = typeof words === "function" ? words(seconds) : words;
  const [name, run] = kind === "key" ? [t.key, () => openSettings("key")] : kind === "long" ? [t.newChat, clear]
    : [t.retry, () => regenerate(state.turns.indexOf(turn))];
  return el("div", { class: "notice", role: "alert" }, el("p", {}, text, detail ? el("small", {}, detail) : null),
    el("button", { type: "button", onclick: run }, name));
}
function drawControls() {
  const running = Boolean(state.running), send = $("send");
  send.replaceChildren(running ? el("span", { class: "stop" }) : icon("up"));
  send.disabled = !running && !$("draft").value.trim();
  send.setAttribute("aria-label", running ? t.stop : t.send); send.title = running ? t.stop : t.send;
  $("log").setAttribute("aria-busy", String(running));
  $("new").disabled = !state.turns.length;
  $("model").dataset.state = state.status === "ready" ? "ready" : state.status === "wait" ? "wait" : "down";
  $("model-name").textContent = { ready: state.model, wait: t.connecting, down: t.offline, locked: t.locked }[state.status];
  $("model").title = $("model-name").textContent;
}
function scroll() { if (state.follow) $("scroll").scrollTop = $("scroll").scrollHeight; }

/* ---- language, theme, settings ---- */
function translate() {
  t = STRINGS[state.lang];
  document.documentElement.lang = state.lang === "zh" ? "zh-Hans" : "en";
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t[node.dataset.t];
  $("draft").placeholder = t.placeholder;
  $("lang").textContent = t.other; label("lang", t.otherLabel);
  for (const [id, name] of [["new", t.newChat], ["open-settings", t.settings], ["close-settings", t.close], ["latest", t.latest]]) label(id, name);
  $("ideas").replaceChildren(...t.ideas.map(([title, text]) =>
    el("li", {}, el("button", { class: "idea", type: "button", onclick: () => ask(text) }, el("b", {}, title), el("span", { lang: "en" }, text)))));
  dress(); showParams(); draw();
}
function label(id, name) { $(id).setAttribute("aria-label", name); $(id).title = name; }
function dress() {
  const dark = document.documentElement.dataset.theme === "dark";
  $("theme").replaceChildren(icon(dark ? "sun" : "moon")); label("theme", dark ? t.light : t.dark);
}
function showParams() {
  const { temperature, topk, tokens, system } = state.params;
  $("temperature").value = temperature; $("topk").value = topk; $("tokens").value = tokens; $("system").value = system; $("key").value = state.key;
  $("temperature-out").textContent = Number(temperature).toFixed(2); $("topk-out").textContent = topk > 0 ? topk : t.off;
  $("tokens-out").textContent = `${tokens} ${t.unit}`;
  for (const id of ["temperature", "topk", "tokens"]) $(id).setAttribute("aria-valuetext", $(`${id}-out`).textContent);
}
function openSettings(focus) { $("settings").showModal(); $(focus || "temperature").focus(); }

/* ---- talking to the server: the public API, nothing else ---- */
const headers = () => ({ "content-type": "application/json", ...(state.key ? { authorization: `Bearer ${state.key}` } : {}) });
async function findModel() {
  clearTimeout(findModel.timer);
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (response.ok) { state.model = (await response.json()).data[0].id; state.status = "ready"; }
    else state.status = response.status === 401 ? "locked" : "down";
  } catch { state.status = "down"; }
  if (state.status === "down") findModel.timer = setTimeout(findModel, 4000);
  drawControls();
}
class Failure extends Error { constructor(kind, detail = "", seconds = 0) { super(kind); this.view = { kind, detail, seconds }; } }
async function failureOf(response) {
  let error = {};
  try { error = (await response.json()).error || {}; } catch { /* not our server's answer */ }
  const { status } = response, detail = error.message || `HTTP ${status}`;
  if (status === 401) { state.status = "locked"; return new Failure("key"); }
  if (status === 404) { await findModel(); return new Failure("model", detail); }
  if (status === 429) return new Failure("busy", "", response.headers.get("retry-after") || 1);
  if (status === 503) return new Failure("starting", detail);
  if (error.code === "context_length_exceeded") return new Failure("long", detail);
  return status >= 500 ? new Failure("server", detail) : new Failure("request", detail);
}
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}
function request() {
  const { temperature, topk, tokens, system } = state.params;
  const said = state.turns.filter((turn) => turn.role === "user" || turn.content).map(({ role, content }) => ({ role, content }));
  return { model: state.model, messages: system.trim() ? [{ role: "system", content: system }, ...said] : said,
    temperature: Number(temperature), top_k: Number(topk), max_tokens: Number(tokens), stream: true,
    stream_options: { include_usage: true }, nanochat_tools: true };
}
async function answer() {
  const controller = new AbortController();
  const turn = { role: "assistant", content: "", tools: [] };
  state.turns.push(turn); state.running = controller; state.follow = true;
  draw();
  let first = 0, frame = 0, done = false;
  const paint = () => { frame = 0; const node = $("log").lastElementChild; if (node) fill(node.querySelector(".text"), turn, true); scroll(); };
  try {
    if (!state.model) await findModel();
    controller.signal.throwIfAborted();
    if (!state.model) throw new Failure(state.status === "locked" ? "key" : "network");
    const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(request()), signal: controller.signal });
    if (!response.ok) throw await failureOf(response);
    for await (const data of events(response.body)) {
      if (data === "[DONE]") { done = true; break; }
      const chunk = JSON.parse(data), choice = (chunk.choices || [])[0];
      if (chunk.error) throw new Failure("broken", chunk.error.message);
      if (chunk.usage) { turn.count = chunk.usage.completion_tokens; }
      if (!choice) continue;
      if (choice.delta.content) { first ||= performance.now(); turn.content += choice.delta.content; }
      if (choice.nanochat_tools) turn.tools.push(...choice.nanochat_tools);
      if (choice.finish_reason === "length") turn.cut = true;
      frame ||= requestAnimationFrame(paint);
    }
    if (!done) throw new Failure("broken");
    const seconds = (performance.now() - first) / 1000;
    if (first && turn.count > 1 && seconds > 0.05) turn.rate = Math.round((turn.count - 1) / seconds);
  } catch (error) {
    if (error.name === "AbortError") turn.stopped = true;
    else turn.error = error instanceof Failure ? error.view : { kind: turn.content ? "broken" : "network", detail: "" };
    if (turn.error && turn.error.kind === "network") { state.status = "down"; findModel(); }
  }
  cancelAnimationFrame(frame);
  if (state.running === controller) state.running = null;
  draw();
}
function ask(text) {
  stop();
  if (state.turns.at(-1)?.error && !state.turns.at(-1).content) state.turns.pop();
  if (state.turns.at(-1)?.role === "user") state.turns.pop();
  state.turns.push({ role: "user", content: text });
  answer();
}
function clear() { stop(); state.turns = []; state.editing = -1; draw(); $("draft").focus(); }
function regenerate(index) { stop(); state.turns.length = index; answer(); }
function stop() {
  if (!state.running) return;
  state.running.abort(); state.running = null;
  const turn = state.turns.at(-1);
  if (turn?.role === "assistant") turn.stopped = true;
}

/* ---- wiring ---- */
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.running) { stop(); draw(); $("draft").focus(); return; }
  const text = $("draft").value.trim();
  if (!text) return;
  $("draft").value = ""; grow($("draft")); ask(text);
});
$("draft").addEventListener("input", () => { grow($("draft")); drawControls(); });
$("draft").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !state.running) { event.preventDefault(); $("composer").requestSubmit(); }
  if (event.key === "Escape" && state.running) { stop(); draw(); }
});
$("new").addEventListener("click", clear);
$("lang").addEventListener("click", () => { state.lang = state.lang === "en" ? "zh" : "en"; store(localStorage, "lang", state.lang); translate(); });
$("theme").addEventListener("click", () => {
  const root = document.documentElement, theme = root.dataset.theme === "dark" ? "light" : "dark";
  root.dataset.theme = theme;
  try { localStorage.setItem("nanochat.theme", theme); } catch { /* not kept */ }
  dress();
});
$("open-settings").addEventListener("click", () => openSettings());
$("settings").addEventListener("click", (event) => { if (event.target === $("settings")) $("settings").close(); });
$("settings").addEventListener("close", () => { if (state.status !== "ready") findModel(); });
for (const id of ["temperature", "topk", "tokens", "system"]) {
  $(id).addEventListener("input", () => {
    state.params[id] = id === "system" ? $(id).value : Number($(id).value);
    store(localStorage, "params", state.params); showParams();
  });
}
$("key").addEventListener("input", () => { state.key = $("key").value.trim(); store(sessionStorage, "key", state.key); });
$("reset").addEventListener("click", () => { state.params = { ...DEFAULTS }; store(localStorage, "params", state.params); showParams(); });
$("scroll").addEventListener("scroll", () => {
  const { scrollTop, scrollHeight, clientHeight } = $("scroll");
  state.follow = scrollHeight - scrollTop - clientHeight < 60;
  $("latest").hidden = state.follow;
}, { passive: true });
$("latest").addEventListener("click", () => { state.follow = true; scroll(); });
translate(); findModel();
if (matchMedia("(hover: hover)").matches) $("draft").focus();
