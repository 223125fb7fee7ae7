// The playground: sends one conversation as a key, shows the answer as it comes, and what it cost.

export function start(form, copied) {
  const find = (selector) => form.querySelector(selector);
  const chat = find("[data-chat]");
  const token = document.querySelector('meta[name="csrf-token"]').content;
  let messages = [];
  let running = null;

  const said = (who, text, kind = who) => {
    find("[data-empty]")?.remove();
    const box = document.createElement("div");
    box.className = `said ${kind}`;
    const by = document.createElement("span");
    by.className = "by";
    by.textContent = who === "user" ? "You" : form.model.value;
    const body = document.createElement("div");
    body.className = "text";
    body.textContent = text;
    box.append(by, body);
    chat.append(box);
    chat.scrollTop = chat.scrollHeight;
    return { box, body };
  };

  const request = () => {
    const system = form.system.value.trim();
    const body = { model: form.model.value, messages: [...(system ? [{ role: "system", content: system }] : []), ...messages] };
    if (form.max_tokens.value.trim()) body.max_tokens = Number(form.max_tokens.value);
    if (form.temperature.value.trim()) body.temperature = Number(form.temperature.value);
    if (form.stream.checked) body.stream = true;
    return body;
  };

  const facts = (pairs) => {
    find("[data-facts]").replaceChildren(...pairs.flatMap(([name, value]) => {
      const term = document.createElement("dt");
      const told = document.createElement("dd");
      term.textContent = name;
      told.textContent = value;
      return [term, told];
    }));
  };

  const headersOf = (answer) => {
    find("[data-headers]").textContent = [`HTTP ${answer.status}`, ...[...answer.headers].filter(([name]) => /^(x-|content-type|retry)/.test(name)).map(([name, value]) => `${name}: ${value}`)].join("\n");
  };

  async function read(answer, show) {
    if (!(answer.headers.get("content-type") || "").startsWith("text/event-stream")) {
      const told = await answer.json();
      if (told.error) throw new Error(`${told.error.code}: ${told.error.message}`);
      show(told.choices?.[0]?.message?.content ?? "");
      return;
    }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
        const told = JSON.parse(line.slice(6));
        if (told.error) throw new Error(`${told.error.code}: ${told.error.message}`);
        show(told.choices?.[0]?.delta?.content ?? "");
      }
    }
  }

  async function explain(requestId, firstMs, totalMs) {
    const link = find("[data-record]");
    link.hidden = false;
    link.href = `/admin/usage/${requestId}`;
    for (let round = 0; round < 20; round += 1) {
      const answer = await fetch(`/admin/api/usage/logs?request_id=${requestId}`, { headers: { accept: "application/json" } });
      const call = answer.ok ? (await answer.json()).items[0] : null;
      if (call) {
        facts([
          ["Outcome", `${call.outcome} (${call.http_status})`], ["Cost", `$${call.cost_usd}`],
          ["Tokens", `${call.prompt_tokens} in, ${call.completion_tokens} out (${call.usage_quality})`],
          ["Served by", `${call.served_model}${call.provider ? `, ${call.provider}` : ""}`], ["Endpoint", call.endpoint_id || "none"],
          ["Attempts", String(call.attempts)], ["First token", `${call.first_token_ms ?? "—"} ms at the gateway, ${firstMs ?? "—"} ms here`], ["Duration", `${call.duration_ms} ms at the gateway, ${totalMs} ms here`], ["Request id", requestId],
        ]);
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, 250));
    }
  }

  async function send() {
    const text = form.prompt.value.trim();
    if (!text || running) return;
    messages.push({ role: "user", content: text });
    said("user", text);
    form.prompt.value = "";
    running = new AbortController();
    find("[data-send]").disabled = true;
    find("[data-stop]").hidden = false;
    find("[data-clear]").hidden = false;
    const { box, body } = said("assistant", "…");
    const began = performance.now();
    let first = null;
    let whole = "";
    let requestId = null;
    try {
      const answer = await fetch("/admin/playground/call", {
        method: "POST",
        headers: { "content-type": "application/json", "x-csrf-token": token },
        body: JSON.stringify({ key_id: form.key_id.value, body: request() }),
        signal: running.signal,
      });
      requestId = answer.headers.get("x-request-id");
      headersOf(answer);
      await read(answer, (part) => {
        if (part && first === null) first = Math.round(performance.now() - began);
        whole += part;
        body.textContent = whole;
        chat.scrollTop = chat.scrollHeight;
      });
      messages.push({ role: "assistant", content: whole });
    } catch (error) {
      const isStopped = error.name === "AbortError";
      if (!isStopped) {
        box.classList.add("failed");
        messages.pop();
      }
      body.textContent = whole + (isStopped ? " (stopped)" : `${whole ? "\n" : ""}${error.message}`);
    }
    running = null;
    find("[data-send]").disabled = false;
    find("[data-stop]").hidden = true;
    form.prompt.focus();
    if (requestId) await explain(requestId, first, Math.round(performance.now() - began));
  }

  const asCode = {
    curl: () => {
      const body = JSON.stringify({ ...request(), messages: examples() }, null, 2).replaceAll("'", "'\\''");
      return `curl ${form.dataset.base}/v1/chat/completions \\\n  -H "Authorization: Bearer $API_KEY" \\\n  -H 'Content-Type: application/json' \\\n  -d '${body}'`;
    },
    python: () => {
      const { model, ...rest } = { ...request(), messages: examples() };
      const more = Object.entries(rest).map(([name, value]) => `    ${name}=${python(value)},\n`).join("");
      return `from openai import OpenAI\n\nclient = OpenAI(base_url=${JSON.stringify(`${form.dataset.base}/v1`)}, api_key="…")\nanswer = client.chat.completions.create(\n    model=${JSON.stringify(model)},\n${more})\n${rest.stream ? 'for chunk in answer:\n    print(chunk.choices[0].delta.content or "", end="")' : "print(answer.choices[0].message.content)"}\n`;
    },
  };
  const examples = () => {
    const now = request().messages;
    const text = form.prompt.value.trim();
    return text ? [...now, { role: "user", content: text }] : now.length ? now : [{ role: "user", content: "Hello" }];
  };
  const python = (value) => JSON.stringify(value).replaceAll(/\b(true|false|null)\b(?=[,}\]]|$)/g, (word) => ({ true: "True", false: "False", null: "None" })[word]);

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  form.prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
  });
  find("[data-stop]").onclick = () => running?.abort();
  find("[data-clear]").onclick = () => {
    running?.abort();
    messages = [];
    chat.replaceChildren();
    find("[data-clear]").hidden = true;
  };
  for (const button of form.querySelectorAll("[data-as]")) {
    button.hidden = false;
    button.onclick = () => copied(button, asCode[button.dataset.as]());
  }
}
