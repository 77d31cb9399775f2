// Opens live.html in headless Chromium: node browser.mjs HUB_URL TOKEN
// Each change of what the page shows is a JSON line on stdout; a line on stdin, {"gateway","device","name"}, fills in
// the page's form and sends it.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
// An import would not look where NODE_PATH points.
const { chromium } = createRequire(import.meta.url)("playwright-core");

const [hub, token] = process.argv.slice(2);
const TYPES = { "/live.html": "text/html", "/live.js": "text/javascript" };
const POLL_MS = 50;

const server = createServer(async ({ url }, response) => {
  const path = url.split("?")[0];
  if (!TYPES[path]) return response.writeHead(404).end();
  response.writeHead(200, { "content-type": TYPES[path] });
  response.end(await readFile(new URL(`.${path}`, import.meta.url)));
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--ignore-certificate-errors", // the authority is a throwaway one
  ],
});
const page = await browser.newPage();
page.on("pageerror", (error) => { console.error(error); process.exitCode = 1; });
page.on("console", (message) => console.error(`page: ${message.text()}`));
const query = new URLSearchParams({ hub, token });
await page.goto(`http://127.0.0.1:${server.address().port}/live.html?${query}`);

let last = "";
const watch = setInterval(async () => {
  const shown = JSON.stringify(await page.evaluate(() => {
    const text = (id) => document.getElementById(id).textContent;
    const [records, connections, pongs] = ["records", "connections", "pongs"].map((id) => Number(text(id)));
    const cells = (row) => [...row.cells].map((cell) => cell.textContent);
    const rows = [...document.getElementById("latest").rows].map(cells);
    return { state: text("state"), status: text("status"), records, connections, pongs, rows };
  }).catch(() => null)); // the page went between two looks
  if (shown !== last && shown !== "null") console.log(shown);
  last = shown;
}, POLL_MS);

createInterface({ input: process.stdin }).on("line", async (line) => {
  for (const [name, value] of Object.entries(JSON.parse(line))) await page.fill(`[name=${name}]`, value);
  await page.click("button");
}).on("close", async () => {
  clearInterval(watch);
  await browser.close();
  process.exit();
});
