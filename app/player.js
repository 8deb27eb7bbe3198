// The video with its timeline beside it. `element`, `props` and `watch` are those of Gradio's HTML component.
const NAMES = ["valence", "arousal"];
const HEIGHT = 230, LEFT = 30, RIGHT = 20, TOP = 8, BOTTOM = 22;  // px of the plot over time and its margins

function show() {
  const value = props.value;
  if (!value) { element.replaceChildren(); return; }
  element.innerHTML = `
    <div class="player">
      <div class="screen"><video controls playsinline preload="auto"></video><svg class="boxes"></svg></div>
      <div class="charts">
        <fieldset class="faces" aria-label="Face that is shown"></fieldset>
        <svg class="series" role="img" height="${HEIGHT}"></svg>
        <div class="keys"><span class="valence">valence</span><span class="arousal">arousal</span>
          <span class="unseen">no face detected</span><span class="unheard">no sound</span></div>
        <div class="below"><svg class="circumplex" role="img" viewBox="-1.5 -1.3 3 2.6"></svg><div class="now"></div></div>
      </div>
    </div>`;
  const find = (selector) => element.querySelector(selector);
  const video = find("video"), series = find(".series");
  const step = 1 / value.fps;
  const last = Math.max(...value.panels.map((panel) => panel.time.at(-1))) + step;
  const detected = (panel) => panel.face_detected.filter(Boolean).length;
  let panel = value.panels.reduce((best, other) => (detected(other) > detected(best) ? other : best));
  let seconds = 0, width = 0;

  const x = (time) => LEFT + (time / last) * (width - LEFT - RIGHT);
  const y = (v) => TOP + ((1 - v) / 2) * (HEIGHT - TOP - BOTTOM);
  // stretches of rows of a panel that `chosen(index)` holds for, without a frame missing
  function stretches({ frame }, chosen = () => true) {
    const found = [];
    frame.forEach((number, index) => {
      if (!chosen(index)) return;
      const open = found.at(-1);
      if (open && open.at(-1) === index - 1 && frame[index - 1] === number - 1) open.push(index);
      else found.push([index]);
    });
    return found;
  }
  // the row of a panel at the moment that is shown, -1 if the frame has none
  function rowNow({ time, frame }) {
    let low = 0, high = time.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (time[middle] <= seconds + 1e-3) low = middle + 1; else high = middle;
    }
    const row = low - 1, held = frame[low] === frame[row] + 1 || seconds - time[row] < 1.5 * step;
    return held ? row : -1;
  }

  function drawSeries() {
    width = series.clientWidth;
    const tick = [1, 2, 5, 10, 20, 30, 60, 120].find((size) => (last / size) * 60 < width) ?? 300;
    let out = "";
    for (const level of [-1, -0.5, 0, 0.5, 1]) {
      out += `<line class="grid" x1="${LEFT}" x2="${width - RIGHT}" y1="${y(level)}" y2="${y(level)}"/>`;
      out += `<text x="${LEFT - 4}" y="${y(level) + 4}" text-anchor="end">${level}</text>`;
    }
    for (let time = 0; time <= last; time += tick) {
      const label = `${time}${time + tick > last ? " s" : ""}`;
      out += `<text x="${x(time)}" y="${HEIGHT - 6}" text-anchor="middle">${label}</text>`;
    }
    const band = (name, chosen, top) => stretches(panel, chosen).forEach((rows) => {
      const start = x(panel.time[rows[0]]), stop = x(panel.time[rows.at(-1)] + step);
      out += `<rect class="${name}" x="${start}" y="${top}" width="${stop - start}" height="6"/>`;
    });
    band("unseen", (index) => !panel.face_detected[index], TOP - 6);
    band("unheard", (index) => !panel.audio_present[index], HEIGHT - BOTTOM);
    for (const name of NAMES) {
      for (const rows of stretches(panel)) {
        const points = rows.map((row) => `${x(panel.time[row]).toFixed(1)},${y(panel[name][row]).toFixed(1)}`);
        out += `<polyline class="${name}" points="${points.join(" ")}"/>`;
      }
    }
    out += `<line class="cursor" y1="${TOP}" y2="${HEIGHT - BOTTOM}"/>`;
    out += NAMES.map((name) => `<circle class="${name} dot" r="4"/>`).join("");
    series.innerHTML = out;
    series.setAttribute("aria-label", `Valence and arousal over ${last.toFixed(1)} seconds`);
  }

  function drawCircumplex() {
    const corners = [[1, -0.92], [-1, -0.92], [-1, 1.02], [1, 1.02]];
    const path = stretches(panel).map((rows) =>
      `<polyline class="path" points="${rows.map((row) => `${panel.valence[row]},${-panel.arousal[row]}`).join(" ")}"/>`);
    find(".circumplex").innerHTML =
      `<circle class="grid" r="1"/><path class="grid" d="M-1 0H1M0 -1V1"/>` +
      corners.map(([right, down], i) => `<text x="${right}" y="${down}">${value.quadrants[i]}</text>`).join("") +
      path.join("") + `<polyline class="trail"/><circle class="dot" r="0.08"/>`;
    find(".circumplex").setAttribute("aria-label", "Path through the plane of valence (to the right) and arousal (up)");
  }

  function drawNow() {
    const row = rowNow(panel), there = row >= 0;
    const cursor = find(".cursor");
    cursor.setAttribute("x1", x(seconds)); cursor.setAttribute("x2", x(seconds));
    for (const dot of element.querySelectorAll(".dot")) dot.style.visibility = there ? "visible" : "hidden";
    find(".trail").setAttribute("points", "");
    let text = `<b>${seconds.toFixed(2)} s</b>`;
    if (there) {
      for (const name of NAMES) {
        const value = panel[name][row], dot = find(`.series .${name}.dot`);
        dot.setAttribute("cx", x(panel.time[row])); dot.setAttribute("cy", y(value));
        text += `<span class="${name}">${name} <b>${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}</b></span>`;
      }
      text += panel.face_detected[row] ? "<span>face detected</span>" : "<span>no face detected</span>";
      text += panel.audio_present[row] ? "<span>sound</span>" : "<span>no sound</span>";
      const dot = find(".circumplex .dot");
      dot.setAttribute("cx", panel.valence[row]); dot.setAttribute("cy", -panel.arousal[row]);
      let first = row;  // of the last second
      while (first > 0 && seconds - panel.time[first - 1] < 1 && panel.frame[first - 1] === panel.frame[first] - 1) first--;
      const points = panel.time.slice(first, row + 1).map((_, i) => `${panel.valence[first + i]},${-panel.arousal[first + i]}`);
      find(".trail").setAttribute("points", points.join(" "));
    } else text += "<span>not in sight</span>";
    find(".now").innerHTML = text;
    find(".now").dataset.row = there ? panel.frame[row] : "";

    find(".boxes").innerHTML = value.panels.map((other) => {
      const row = rowNow(other), box = other.box[row];
      if (!box) return "";
      const [x0, y0, x1, y1] = box, size = video.videoHeight / 18;
      const name = other.name && `<text x="${x0}" y="${y0 - size / 3}" style="font-size: ${size}px">${other.name}</text>`;
      const classes = `${other === panel ? "chosen" : ""} ${other.face_detected[row] ? "" : "assumed"}`;
      return `<g class="${classes}" style="--face: ${other.color}">${name}` +
        `<rect x="${x0}" y="${y0}" width="${x1 - x0}" height="${y1 - y0}"/></g>`;
    }).join("");
  }

  function draw() { drawSeries(); drawCircumplex(); drawNow(); }

  function choose(chosen) { panel = chosen; draw(); }
  if (value.panels.length > 1) {
    value.panels.forEach((other) => {
      const label = document.createElement("label");
      label.style.setProperty("--face", other.color);
      label.innerHTML = `<input type="radio" name="face" ${other === panel ? "checked" : ""}> ${other.name}`;
      label.firstChild.addEventListener("change", () => choose(other));
      find(".faces").append(label);
    });
  } else find(".faces").remove();

  function follow() {
    if (video.error === null) seconds = video.currentTime - value.start;
    drawNow();
    if (!video.paused && !video.ended && video.isConnected) requestAnimationFrame(follow);
  }
  for (const event of ["play", "seeking", "pause", "timeupdate"]) video.addEventListener(event, follow);
  video.addEventListener("loadedmetadata", () => {
    find(".boxes").setAttribute("viewBox", `0 0 ${video.videoWidth} ${video.videoHeight}`);
    drawNow();
  });
  video.addEventListener("error", () => {
    video.hidden = true;
    find(".screen").insertAdjacentHTML(
      "beforeend", "<p>This browser can not play the video. Its timeline is complete: click into the plot.</p>");
  });
  function seek(event) {
    if (event.buttons !== 1) return;
    const share = (event.clientX - series.getBoundingClientRect().left - LEFT) / (width - LEFT - RIGHT);
    seconds = Math.min(Math.max(share, 0), 1) * last;
    if (video.error === null) video.currentTime = seconds + value.start;
    drawNow();
  }
  for (const event of ["pointerdown", "pointermove"]) series.addEventListener(event, seek);

  new ResizeObserver(() => { if (series.clientWidth && series.clientWidth !== width) draw(); }).observe(series);
  video.src = value.video.url;
  draw();
}

watch("value", show);
show();
