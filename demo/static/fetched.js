/**
 * What the server answers to a request; an error says in words why there is nothing.
 * @param {URL} url
 * @param {RequestInit} [request]
 */
export async function fetched(url, request) {
  const answer = await fetch(url, request).catch(() => { throw new Error("the server does not answer"); });
  if (!answer.ok) {
    // what stands before the server may answer something else
    const { error = `the server answers ${answer.status}` } = await answer.json().catch(() => ({}));
    throw new Error(error);
  }
  return answer;
}
