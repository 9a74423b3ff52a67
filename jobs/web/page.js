// What every part of the page uses: its elements, its status line, and the server's answers.

export const find = (id) => document.getElementById(id);

export const say = (text) => { find("status").textContent = text; };

export async function ask(path, options) {
  const answer = await fetch(path, options);
  if (!answer.ok) {
    const text = await answer.text();
    let told = text;
    try { told = JSON.parse(text).error; } catch { /* plain text */ }
    throw new Error(told);
  }
  return answer;
}

export function cell(row, text, kind) {
  const td = row.insertCell();
  td.textContent = text === null ? "" : typeof text === "number" ? Number(text.toPrecision(5)).toString() : text;
  if (kind) td.className = kind;
}
